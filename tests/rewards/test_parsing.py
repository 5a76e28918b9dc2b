"""Answers are read as people write them, and no string raises."""

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from jvlmm.rewards import parsing

OPTIONS = ("red circle", "blue square", "a green triangle", "red")


@pytest.mark.parametrize(
    ("text", "answer", "method"),
    [
        ("<think>x</think><answer> B </answer>", "B", "tag"),
        ("<answer>A</answer> no: <answer>B</answer>\n", "B", "tag"),
        ("<answer>A <answer>B</answer></answer>", "B", "tag"),
        ("<answer>A</answer> or <answer>B", "A", "tag"),
        ("<think>x</think><answer>B", "B", "open_tag"),
        ("<think>it is A</think> B", "B", "after_think"),
        ("</answer> B", "</answer> B", "whole"),
        ("", "", "whole"),
    ],
)
def test_the_last_answer_tag_wins(text, answer, method):
    assert parsing.extract_answer(text) == (answer, method)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>a</think><answer>b</answer>", True),
        (" <think>a\nb</think>\n\n<answer>b</answer>\n", True),
        ("<think>a</think> so <answer>b</answer>", False),
        ("<answer>b</answer><think>a</think>", False),
        ("<think>a</think><answer>b</answer><answer>b</answer>", False),
        ("<think><think>a</think><answer>b</answer>", False),
        ("<think>a</think><answer>b", False),
        ("<answer>b</answer>", False),
        ("", False),
    ],
)
def test_format(text, expected):
    assert parsing.format_ok(text) is expected


@pytest.mark.parametrize("text", ["B", "b", "B.", "(B)", "[B]", " B ", "**B**", "B. blue square", "(B) blue", "B) x"])
def test_letter_forms(text):
    assert parsing.parse_choice(text, OPTIONS) == "B"
    assert parsing.parse_choice(text) == "B"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Blue square.", "B"),
        ("the blue   square", "B"),
        ("green triangle", "C"),
        ("A green triangle", "C"),
        ("It is the blue square", "B"),
        ("The answer is (B).", "B"),
        ("Answer: B", "B"),
        ("A. blue square", "A"),
        ("red", "D"),
        ("the red circle moved", None),  # names both "red circle" and "red"
        ("Option A or option B", None),
        ("E", None),
        ("purple", None),
        ("", None),
    ],
)
def test_option_texts(text, expected):
    assert parsing.parse_choice(text, OPTIONS) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3", 3),
        ("1,000", 1000),
        ("1,234,567.5 m", 1234567.5),
        ("-2.5", -2.5),
        (".5", 0.5),
        ("1e3", 1000),
        ("42 apples", 42),
        ("There are three", 3),
        ("Three.", 3),
        ("3-4", None),
        ("50%", 50),
        ("a1", None),
        ("9" * 400, None),
        ("", None),
    ],
)
def test_numbers(text, expected):
    assert parsing.parse_number(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A, C", "AC"),
        ("a c", "AC"),
        ("(A) and (C)", "AC"),
        ("AC", "AC"),
        ("A. red circle, C. green triangle", "AC"),
        ("B", "B"),
        ("the blue square", "B"),
        ("RED", "D"),  # the text of an option, not letters
        ("A, E", None),
        ("AE", None),
        ("ac", None),
        ("purple", None),
        ("", None),
    ],
)
def test_several_letters(text, expected):
    assert parsing.parse_choices(text, OPTIONS) == (frozenset(expected) if expected else None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1,000.50 m", "1000.50"), ("three", "3"), ("3.0", "3.0"), ("-.5", "-0.5"), ("9" * 400, "None"), ("", "None")],
)
def test_decimals_keep_the_places_they_are_written_with(text, expected):
    assert str(parsing.parse_decimal(text)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<t>1.0</t>s to <t>3.0</t>s", (1, 3)),
        ("1.0 to 3.0", (1, 3)),
        ("1.0s - 3.0s", (1, 3)),
        ("from 1 to 3.25 seconds.", (1, 3.25)),
        ("[1.5, 3]", (1.5, 3)),
        ("00:05 - 01:02.5", (5, 62.5)),
        ("1:00:00–1:00:10", (3600, 3610)),
        ("at 0 to 1, then 2 to 4", (2, 4)),
        ("3 to 1", (3, 1)),
        ("-1 to 2", (-1, 2)),
        ("at 2.0", None),
        ("", None),
    ],
)
def test_spans(text, expected):
    assert parsing.parse_span(text) == expected


def test_boxes():
    assert parsing.parse_boxes("<obj>x</obj><box>[1, 2,3.5,4]</box> and (5,6,7,8)") == ((1, 2, 3.5, 4), (5, 6, 7, 8))
    assert parsing.parse_boxes("[1,2,3] [1,2,3,4,5] 1,2,3,4") == ()


@pytest.mark.parametrize(
    ("text", "expected"), [("Yes.", "yes"), ("no, it is not", "no"), ("I think yes", "yes"), ("maybe yes or no", None)]
)
def test_yesno(text, expected):
    assert parsing.parse_yesno(text) == expected


_FRAGMENTS = st.lists(
    st.one_of(
        st.sampled_from(
            ["<think>", "</think>", "<answer>", "</answer>", "<t>", " to ", "-", ":", "1,000", "[1,2,3,4]"]
        ),
        st.text(max_size=8),
        st.integers().map(str),
        st.floats().map(str),
    )
).map("".join)


@given(_FRAGMENTS)
@example("9" * 400 + " to 1")
@example("٣ to ٤")
@example("[1,2,3,²]")
def test_no_string_raises_and_what_is_read_is_finite(text):
    answer = parsing.extract_answer(text)
    assert answer.text in text
    assert parsing.parse_choice(text, OPTIONS) in (None, *"ABCD")
    assert (parsing.parse_choices(text, OPTIONS) or frozenset()) <= frozenset("ABCD")
    assert parsing.parse_yesno(text) in (None, "yes", "no")
    number, span = parsing.parse_number(text), parsing.parse_span(text)
    assert number is None or math.isfinite(number)
    assert span is None or all(map(math.isfinite, span))
    assert all(math.isfinite(x) for box in parsing.parse_boxes(text) for x in box)
    assert isinstance(parsing.format_ok(text), bool)
    assert parsing.normalize_text(parsing.normalize_text(text)) == parsing.normalize_text(text)


@given(st.floats(0, 1e5), st.floats(0, 1e5))
def test_a_written_span_is_read_back(start, end):
    assert parsing.parse_span(f"<t>{start:.2f}</t>s to <t>{end:.2f}</t>s") == (
        float(f"{start:.2f}"),
        float(f"{end:.2f}"),
    )
