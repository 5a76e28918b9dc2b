"""A judge without a model: the gold answer, the key frames and the claims of the thought decide."""

from collections.abc import Sequence
from dataclasses import dataclass

from jvlmm.data.example import Example
from jvlmm.errors import DataError
from jvlmm.judges.verdict import Case, Cause, Verdict
from jvlmm.rewards import parsing, scoring
from jvlmm.rewards.claims import KeyFrame, claims, key_frames, nearest, same_name, thought, times
from jvlmm.rewards.gold import gold_span

_SAME_MOMENT = 1.0  # seconds from a key frame
_GOOD = 0.5  # a mark from which on nothing is to be said


@dataclass(frozen=True)
class Rules:
    """The judge of rules, as an option; there is nothing to choose."""


def judge(cases: Sequence[Case]) -> list[Verdict | None]:
    """A verdict on each; None where the gold answer cannot be used."""
    return [_verdict(case) for case in cases]


def _verdict(case: Case) -> Verdict | None:
    example, text = case.example, case.text
    try:
        score, frames = scoring.score(text, example), key_frames(example)
    except DataError:
        return None
    consistency = _consistency(text, example, score.parsed)
    temporal, spatial = _temporal(text, example, frames), _spatial(text, frames)
    marks = {"answer": score.value, "consistency": consistency, "temporal_grounding": temporal}
    cause = _cause(text, example, score, consistency, temporal, spatial)
    feedback = " ".join(_sentences(example, score, consistency, temporal, spatial, cause))
    return Verdict(feedback, **marks, spatial_grounding=spatial, cause=cause)


def _consistency(text: str, example: Example, answered: scoring.Parsed) -> float | None:
    """Whether the end of the thought says what the answer says; None where it says nothing of the kind."""
    ending = thought(text).strip().rstrip(".").rpartition("\n")[2]
    if example.answer_type == "span":
        cited = times(ending)[-2:]
        concluded = cited if len(cited) == 2 else None
    else:
        ending = ending.rpartition(" ")[2] if example.answer_type == "mcq" else ending
        concluded = scoring.parse(ending, example) if ending else None
    if concluded is None or answered is None:
        return None
    if example.answer_type == "text":
        return float(str(answered) in str(concluded))
    return float(concluded == answered)


def _temporal(text: str, example: Example, frames: Sequence[KeyFrame]) -> float | None:
    """Share of the thought's times, if any, that are moments of the evidence or lie in the gold span."""
    if example.answer_type == "span":
        start, end = gold_span(example)
        right = lambda time: start - _SAME_MOMENT <= time <= end + _SAME_MOMENT  # noqa: E731
    elif frames and any(frame.time for frame in frames):
        right = lambda time: abs(nearest(frames, time).time - time) <= _SAME_MOMENT  # noqa: E731
    else:
        return None
    cited = times(thought(text))
    return sum(map(right, cited)) / len(cited) if cited else None


def _spatial(text: str, frames: Sequence[KeyFrame]) -> float | None:
    """Mean over the thought's claims, if any, of the best IoU with an object of a like name at the next key frame.

    A claim without a time may be about any of them.
    """
    if not any(frame.objects for frame in frames):
        return None
    made = claims(thought(text))
    about = lambda claim: frames if claim.time is None else [nearest(frames, claim.time)]  # noqa: E731
    found = [max(_overlap(claim, frame) for frame in about(claim)) for claim in made]
    return sum(found) / len(found) if found else None


def _overlap(claim, frame: KeyFrame) -> float:
    boxes = [box for name, boxes in frame.objects.items() if same_name(name, claim.name) for box in boxes]
    return max((scoring.box_iou(box, other) for box in boxes for other in claim.boxes), default=0.0)


def _cause(
    text: str,
    example: Example,
    score: scoring.Score,
    consistency: float | None,
    temporal: float | None,
    spatial: float | None,
) -> Cause:
    """The first thing that went wrong, in the order in which a thought is written."""
    if not parsing.format_ok(text) or score.parsed is None:
        return "incomplete"
    if temporal is not None and temporal < _GOOD:
        return "wrong time"
    if spatial is not None and spatial < _GOOD:
        return "wrong object"
    if consistency == 0:
        return "answer drifted"
    if score.correct:
        return ""
    if example.answer_type == "span":
        (start, end), gold = score.parsed, gold_span(example)
        return "too broad" if end - start > 2 * (gold[1] - gold[0]) else "wrong time"
    return "wrong event"


_ADVICE = {
    "incomplete": "Close the thought and give one answer in its tags.",
    "wrong time": "Look again at the moment when it happens.",
    "wrong object": "Find the right object and where it is before reading anything off it.",
    "answer drifted": "Answer what the thought concludes.",
    "too broad": "Narrow the window to what the question asks for.",
    "wrong event": "Compare what was seen with what is asked once more.",
    "": "Keep this chain of reasoning.",
}


def _sentences(
    example: Example,
    score: scoring.Score,
    consistency: float | None,
    temporal: float | None,
    spatial: float | None,
    cause: Cause,
) -> list[str]:
    """Two to four of them."""
    if score.parsed is None:
        said = ["No answer can be read."]
    elif score.correct:
        said = ["The answer is right."]
    else:
        said = ["The answer is wrong."]
    if consistency == 0:
        said.append("The reasoning concludes something else than the answer.")
    where = []
    if temporal is not None:
        where.append(f"{temporal:.0%} of the cited times")
    if spatial is not None:
        where.append(f"{spatial:.0%} of the cited boxes' area")
    if where:
        said.append(f"Of the evidence {' and '.join(where)} agree with the video.")
    return [*said, _ADVICE[cause]]
