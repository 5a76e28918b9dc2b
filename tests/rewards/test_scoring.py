"""Scores of right, wrong, partial and unreadable answers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jvlmm.data.example import Example
from jvlmm.errors import DataError
from jvlmm.rewards.scoring import box_iou, mean_box_iou, score, temporal_iou


def ask(answer_type, answer, options=()):
    return Example("q1", "question?", answer, answer_type, options=options)


@pytest.mark.parametrize(
    ("answer_type", "gold", "text", "value"),
    [
        ("mcq", "B", "(b)", 1),
        ("mcq", "B", "blue", 1),
        ("mcq", "blue", "B", 1),
        ("mcq", "B", "A", 0),
        ("mcq", "B", "", 0),
        ("number", "3", "3.0", 1),
        ("number", "1000", "1,005", 1),
        ("number", "1000", "1,011", 0),
        ("number", "0", "0", 1),
        ("number", "3", "none", 0),
        ("text", "the red circle", "Red circle.", 1),
        ("text", "red circle", "red circles", 0),
        ("yesno", "yes", "Yes, it does.", 1),
        ("span", "1.0 to 3.0", "<t>1</t>s to <t>3</t>s", 1),
        ("span", "1.0 to 3.0", "2.0 to 3.0", 0.5),
        ("span", "1.0 to 3.0", "3.0 to 1.0", 0),
        ("span", "1.0 to 3.0", "soon", 0),
        ("span", "3.0 to 3.0", "3 to 3", 1),  # a moment is a span of no length
        ("span", "3.0 to 3.0", "3 to 4", 0),
        ("boxes", "<box>[0,0,10,10]</box>", "[0,0,10,5]", 0.5),
        ("boxes", "<box>[0,0,10,10]</box>", "nowhere", 0),
    ],
)
def test_values(answer_type, gold, text, value):
    result = score(text, ask(answer_type, gold, ("red", "blue")))
    assert result.value == pytest.approx(value)
    assert result.correct is (value >= 0.5)
    assert (result.tiou is None) == (answer_type != "span")
    assert (result.iou is None) == (answer_type != "boxes")


def test_the_reasoning_format_is_required_only_on_demand():
    example = ask("span", "1 to 3")
    assert score("1 to 3", example).correct
    bare = score("1 to 3", example, require_format=True)
    assert (bare.value, bare.correct, bare.tiou, bare.parsed) == (0, False, 0, (1, 3))
    assert score("<think>seen</think>\n<answer>1 to 3</answer>", example, require_format=True).value == 1


@pytest.mark.parametrize(
    ("answer_type", "gold"),
    [("span", "later"), ("span", "3 to 1"), ("boxes", "[]"), ("number", "many"), ("mcq", "Z"), ("ranking", "1")],
)
def test_a_gold_answer_without_what_its_type_needs_is_refused(answer_type, gold):
    with pytest.raises(DataError, match="q1"):
        score("x", ask(answer_type, gold, ("red", "blue")))


def test_temporal_iou_by_hand():
    assert temporal_iou((0, 2), (1, 3)) == pytest.approx(1 / 3)
    assert temporal_iou((0, 1), (2, 4)) == 0
    assert temporal_iou((-5, 2), (0, 2)) == 1  # clipped at the start of the video
    assert temporal_iou((-5, -2), (0, 2)) == 0
    assert temporal_iou((2, 2), (2, 2)) == 1
    assert temporal_iou((3, 1), (2, 2)) == 0
    assert temporal_iou(None, (0, 1)) == 0


def test_box_iou_by_hand():
    assert box_iou((0, 0, 2, 2), (1, 1, 3, 3)) == pytest.approx(1 / 7)
    assert box_iou((2, 2, 0, 0), (0, 0, 2, 2)) == 0
    assert mean_box_iou(((0, 0, 2, 2),), ((0, 0, 2, 2), (0, 0, 2, 2))) == 0.5


_numbers = st.floats(0, 1e4)


@given(st.tuples(_numbers, _numbers), st.tuples(_numbers, _numbers).map(sorted))
def test_temporal_iou_is_a_similarity(prediction, gold):
    value = temporal_iou(prediction, tuple(gold))
    assert 0 <= value <= 1
    if prediction[0] <= prediction[1]:
        assert value == pytest.approx(temporal_iou(tuple(gold), prediction))


@given(st.tuples(*[_numbers] * 4), st.tuples(*[_numbers] * 4))
def test_box_iou_is_a_similarity(a, b):
    assert 0 <= box_iou(a, b) <= 1 + 1e-9
    assert box_iou(a, b) == box_iou(b, a)
    if a[0] + 1e-3 < a[2] and a[1] + 1e-3 < a[3]:
        assert box_iou(a, a) == pytest.approx(1)


@given(st.text(), st.sampled_from(["mcq", "yesno", "number", "text", "span", "boxes"]), st.booleans())
def test_no_response_raises(text, answer_type, require_format):
    gold = {"mcq": "A", "yesno": "no", "number": "7", "text": "red", "span": "1 to 2", "boxes": "[1,2,3,4]"}
    result = score(text, ask(answer_type, gold[answer_type], ("red", "blue")), require_format)
    assert 0 <= result.value <= 1
