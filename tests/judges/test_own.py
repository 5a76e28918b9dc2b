"""The policy as its own judge: what it is asked, and what becomes of replies that are no verdicts."""

import json

import pytest

from jvlmm.data.example import Example, Media
from jvlmm.errors import ConfigError
from jvlmm.judges.own import Own, OwnJudge
from jvlmm.judges.verdict import Case
from jvlmm.rollout.generator import Response

QUESTION = Example("q", "Which way?", "B", "mcq", (Media("video", "1.mp4"),), options=("left", "right"))


class Answers:
    """Replies from a list, the last one first."""

    def __init__(self, *replies):
        self.replies, self.asked = replies, []

    def stream(self, examples):
        self.asked = examples
        pairs = [*zip(examples, self.replies, strict=True)]
        for number in reversed(range(len(pairs))):
            example, reply = pairs[number]
            error = {"error": "too long"} if reply is None else {"text": reply}
            yield number, Response(example.id, **error)


def test_each_case_is_asked_with_its_media_and_gets_its_own_verdict():
    good = json.dumps({"feedback": "It is wrong.", "answer": 0, "cause": "wrong event"})
    answers = Answers("<think>", good, None)
    judge = OwnJudge(answers)
    verdicts = judge([Case(QUESTION, text) for text in ("one", "<answer>A</answer>", "three")])
    assert [verdict and (verdict.advice, verdict.answer, verdict.cause) for verdict in verdicts] == [
        None,
        ("It is wrong.", 0.0, "wrong event"),
        None,
    ]
    assert judge.failures == {"no JSON": 1, "too long": 1}
    asked = answers.asked[1]
    facts = json.loads(asked.question.partition("\n")[2])
    assert asked.media == QUESTION.media and asked.id != QUESTION.id
    assert (facts["true answer"], facts["given answer"]) == ("B", "A") and "B. right" in facts["question"]


def test_impossible_options_are_refused():
    with pytest.raises(ConfigError, match="judge.max_tokens=0"):
        Own(max_tokens=0)
