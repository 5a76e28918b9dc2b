"""Verdicts without a model: marks, the first cause, and advice in two to four sentences."""

from dataclasses import replace

import pytest

from jvlmm.data.example import Example
from jvlmm.data.moving_shapes import MovingShapesOptions, build, load
from jvlmm.judges.rules import judge
from jvlmm.judges.verdict import CAUSES, LONGEST_FEEDBACK, Case, Verdict

EVIDENCE = [{"time": 2.0, "objects": {"red circle": [[0, 0, 10, 10]]}}]
CHOICE = Example("m", "Which?", "B", "mcq", options=("left", "right"), meta={"evidence": EVIDENCE})
SPAN = Example("s", "When?", "1.0 to 3.0", "span")
SEEN = "The <obj>red circle</obj><box>[0,0,10,10]</box> at <t>2.0</t>s goes right"


def verdict(thought, answer, example=CHOICE):
    (found,) = judge([Case(example, f"<think>{thought}</think><answer>{answer}</answer>")])
    return found


def test_a_right_answer_with_right_evidence():
    found = verdict(f"{SEEN} B.", "B")
    assert (found.answer, found.consistency, found.temporal_grounding, found.spatial_grounding) == (1, 1, 1, 1)
    assert found.cause == "" and found.feedback.startswith("The answer is right.")


@pytest.mark.parametrize(
    ("thought", "answer", "example", "cause"),
    [
        (f"{SEEN} B.", "A", CHOICE, "answer drifted"),
        (f"{SEEN} A.", "A", CHOICE, "wrong event"),
        (SEEN.replace("2.0", "9.0"), "B", CHOICE, "wrong time"),
        (SEEN.replace("[0,0,10,10]", "[50,50,60,60]"), "B", CHOICE, "wrong object"),
        ("I see it", "perhaps", CHOICE, "incomplete"),
        ("From <t>1.0</t>s on", "0.0 to 9.0", SPAN, "too broad"),
        ("From <t>1.5</t>s on", "2.8 to 4.0", SPAN, "wrong time"),
    ],
)
def test_the_first_thing_that_went_wrong(thought, answer, example, cause):
    found = verdict(thought, answer, example)
    assert found.cause == cause
    assert 2 <= found.feedback.count(".") <= 4 and len(found.feedback) < LONGEST_FEEDBACK


def test_a_question_whose_gold_answer_cannot_be_used_has_no_verdict():
    assert judge([Case(replace(SPAN, answer="soon"), "<think>x</think><answer>1 to 2</answer>")]) == [None]


@pytest.mark.parametrize(
    ("feedback", "advice"),
    [("  Look \n again. ", "Look again."), ("N/A", ""), ("none.", ""), ("No issue", ""), ("x" * 2000, "x" * 1000)],
)
def test_advice_is_folded_and_cut(feedback, advice):
    assert Verdict(feedback).advice == advice


def test_every_reference_thought_of_moving_shapes_is_found_right(tmp_path):
    none = {f"{split}_{kind}": 0 for split in ("train", "validation", "test_hard") for kind in ("clips", "images")}
    build(tmp_path, MovingShapesOptions(**none, test_clips=24, test_images=8))
    examples = list(load(tmp_path, "test"))
    found = judge([Case(example, example.response) for example in examples])
    assert len(found) > 40 and all(v.cause == "" and v.answer == 1 for v in found)
    assert all(v.spatial_grounding in (None, 1) and v.temporal_grounding in (None, 1) for v in found)
    assert {v.cause for v in found} <= set(CAUSES)
