"""How a model is asked for a verdict, in words, and how its reply is read."""

import json
import math
from typing import Any

from jvlmm.data.prompts import lettered
from jvlmm.judges.verdict import CAUSES, LONGEST_FEEDBACK, Case, Verdict
from jvlmm.rewards.parsing import extract_answer

_MARKS = ("answer", "consistency", "temporal_grounding", "spatial_grounding")

INSTRUCTION = (
    "You judge one answer to a question about a video, given the true answer and the true evidence. Reply with one "
    'JSON object and nothing else: {"feedback": 2 to 4 sentences that say whether the answer is right, whether the '
    "reasoning agrees with it, and the one error that matters most, without stating the true answer; optionally "
    '"answer", "consistency", "temporal_grounding", "spatial_grounding": numbers from 0 to 1; "cause": one of '
    f"{', '.join(cause for cause in CAUSES if cause)}}}."
)


SCORING_INSTRUCTION = (
    "You mark one answer to a question about a video, given the true answer. Reply with one JSON object and nothing "
    'else: {"answer": a number from 0 to 1, 1 where the given answer means the same as the true answer and 0 where it '
    'does not, "feedback": one sentence that says why}. Other words for the same are right; what the true answer does '
    "not say is no mistake unless it contradicts it."
)


class Unreadable(Exception):
    """A reply that is no verdict; the message says why."""


def facts(case: Case) -> str:
    """What the judge is told besides the instruction, as JSON."""
    example = case.example
    seen = {
        "question": "\n".join([example.question, *lettered(example)]),
        "true answer": example.answer,
        "true evidence": example.meta.get("evidence", []),
        "given answer": extract_answer(case.text).text,
        "given response": case.text,
    }
    return json.dumps(seen, ensure_ascii=False)


def parse_verdict(content: str) -> Verdict:
    """The verdict in a reply: one JSON object, alone or in a fence, of the keys of `INSTRUCTION` and no others.

    Raises Unreadable.
    """
    text = content.strip()
    if text.startswith("```") and text.endswith("```"):
        text = text[3:-3].removeprefix("json")
    try:
        given = json.loads(text)
    except ValueError:
        raise Unreadable("no JSON") from None
    known = {"feedback", "cause", *_MARKS}
    if not isinstance(given, dict) or not isinstance(given.get("feedback"), str) or set(given) - known:
        raise Unreadable("another form of verdict")
    if len(given["feedback"]) > 4 * LONGEST_FEEDBACK:
        raise Unreadable("verdict too long")
    marks = {name: _mark(given[name]) for name in _MARKS if given.get(name) is not None}
    cause = given.get("cause") or ""
    if cause not in CAUSES:
        raise Unreadable("another form of verdict")
    return Verdict(given["feedback"], **marks, cause=cause)


def _mark(value: Any) -> float:
    number = not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value)
    if not number or not 0 <= value <= 1:
        raise Unreadable("another form of verdict")
    return float(value)
