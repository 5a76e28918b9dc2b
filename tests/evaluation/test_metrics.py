"""Figures by hand, and the interval against its published values."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jvlmm.evaluation.metrics import summarize, wilson_interval
from jvlmm.evaluation.predictions import Prediction


def predicted(name, question_type, answer_type, score, error=None, format_ok=True):
    return Prediction(
        id=name,
        question_type=question_type,
        answer_type=answer_type,
        raw="",
        parsed=None if error else "A",
        parse_method=None if error else "tag",
        correct=score >= 0.5,
        score=score,
        format_ok=format_ok and error is None,
        finished=error is None,
        frames=(),
        visual_tokens=0,
        text_tokens=5,
        output_tokens=0 if error else 10,
        latency_s=0.1,
        error=error,
    )


def test_figures_by_hand():
    figures = summarize(
        [
            predicted("a", "colour", "mcq", 1),
            predicted("b", "colour", "mcq", 0, format_ok=False),
            predicted("c", "direction", "mcq", 0, error="c: no such file"),
            predicted("d", "grounding", "span", 0.75),
            predicted("e", "grounding", "span", 0, error="e: broken"),
            predicted("f", "where", "boxes", 0.25),
        ]
    )
    assert figures["accuracy"] == pytest.approx(
        {"overall": 2 / 6, "mcq": 1 / 3, "colour": 0.5, "direction": 0, "grounding": 0.5, "where": 0}
    )
    assert figures["counts"] == {"overall": 6, "mcq": 3, "colour": 2, "direction": 1, "grounding": 2, "where": 1}
    assert figures["answered"] == {"overall": 4, "mcq": 2, "colour": 2, "direction": 0, "grounding": 1, "where": 1}
    answered = figures["accuracy_of_answered"]
    assert (answered["overall"], answered["mcq"], answered["direction"]) == (0.5, 0.5, None)
    assert figures["tiou"] == pytest.approx(0.375)  # the failed row counts as 0
    assert figures["box_iou"] == 0.25
    assert figures["format_rate"] == 0.75
    assert figures["output_tokens"] == 10
    assert figures["failed"] == [{"id": "c", "error": "c: no such file"}, {"id": "e", "error": "e: broken"}]


def test_figures_of_nothing():
    figures = summarize([])
    assert figures["accuracy"] == {} and figures["tiou"] is None and figures["failed"] == []


def test_wilson_interval_of_published_cases():
    """Newcombe 1998, table I, method 3."""
    for correct, total, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611)):
        assert wilson_interval(correct, total) == pytest.approx((low, high), abs=5e-5)
    assert wilson_interval(29, 29) == pytest.approx((0.8830, 1), abs=5e-5)
    assert wilson_interval(0, 0) == (0, 1)


@given(st.integers(1, 500), st.data())
def test_the_interval_holds_the_rate(total, data):
    correct = data.draw(st.integers(0, total))
    low, high = wilson_interval(correct, total)
    assert 0 <= low <= correct / total <= high <= 1
