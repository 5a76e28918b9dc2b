"""Answers in the forms in which people, models and files write them; nothing is read that may mean two things."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_answers import ask, say

from jvlmm.rewards import parsing
from jvlmm.rewards.scoring import score

MOVES = ("left", "right", "up", "down")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3", 3),
        ("1,234", 1234),
        ("1,234.5", 1234.5),
        ("1 234", 1234),
        ("1\u202f234", 1234),
        ("3.5%", 3.5),
        ("1/2", 0.5),
        ("1 1/2", 1.5),
        ("1½", 1.5),
        ("-1/4", -0.25),
        ("-3", -3),
        ("−3", -3),
        ("–3", -3),
        ("+3", 3),
        ("three", 3),
        ("Three.", 3),
        ("thirteen", 13),
        ("There are three objects", 3),
        ("There are three", 3),
        ("two hundred and five", 205),
        ("three thousand forty-two", 3042),
        ("two and a half", 2.5),
        ("minus three", -3),
        ("two million", 2e6),
        ("3 million", 3e6),
        ("2 dozen", 24),
        ("4k", 4000),
        ("two thirds", None),
        ("three four", None),
        ("three or four", None),
        ("Three, the left one is red", 3),
        ("5-6", None),
        ("5 – 6", None),
        ("5 to 6", None),
        ("5 or 6", None),
        ("- 3", None),
        ("3, 5", None),
        ("1,2,3", None),
        ("3.5.2", None),
        ("1/2/2024", None),
        ("3:2", None),
        (r"\frac{1}{2}", 0.5),
        (r"\boxed{3}", 3),
        (r"5 - 2 = \boxed{3}", 3),
        ("２", 2),
        ("٣", 3),
        ("$5", 5),
        ("5m", 5),
        ("5 m²", 5),
        ("3 objects in 5 s", 3),
        ("3 out of 5", 3),
        ("3 red and 2 blue", None),
        ("3 red and 2 blue, so 5", 5),
        ("3 + 2 = 5", 5),
        ("2 are red, 1 is blue. The answer is 3. Note that 5 would be wrong", 3),
        ("3\nOne of 2 kinds is red", 3),
        ("2 on the left and 1 on the right\n3", 3),
        ("1e3", 1000),
        ("3,5", 3.5),
        ("1.234,5", 1234.5),
        ("0,123", 0.123),
        ("2:30", 150),
        ("1:02:03", 3723),
        ("x3", None),
        ("H2O", None),
        ("5.", 5),
        ("½", 0.5),
        ("twenty-one", 21),
        ("²", None),
        ("10²", 100),
        ("10⁻²", 0.01),
        ("2**3", None),
        ("Answer: 3.", 3),
        ("答案：3", 3),
        ("1/0", None),
        ("0^-1", None),
        ("1e999", None),
    ],
)
def test_numbers_are_read_in_all_forms(text, expected):
    assert parsing.parse_number(text) == (None if expected is None else pytest.approx(expected, abs=1e-12))


@given(st.integers(0, 999_999), st.sampled_from(["{}", "{} objects", "There are {}.", "Answer: {}", "**{}**", "({})"]))
def test_every_integer_is_read_back(number, form):
    for written in (str(number), f"{number:,}", f"{number:,}".replace(",", " ")):
        assert parsing.parse_number(form.format(written)) == number
        assert parsing.parse_number(form.format(f"−{written}")) == -number


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3.5 to 7.2", (3.5, 7.2)),
        ("[3.5, 7.2]", (3.5, 7.2)),
        ("[3.5 7.2]", (3.5, 7.2)),
        ("3.5s-7.2s", (3.5, 7.2)),
        ("between 3 and 7 seconds", (3, 7)),
        ("from 1:02 to 1:10", (62, 70)),
        ("00:01:02 - 00:01:10", (62, 70)),
        ("00:01:02,500 --> 00:01:05,000", (62.5, 65.0)),
        *((text, (3, 7)) for text in ("3 – 7", "3~7", "3 s → 7 s", "start: 3, end: 7", "from second 3 to second 7")),
        *(
            (text, (3, 7))
            for text in ('{"start": 3.0, "end": 7.0}', '{"end": 7, "start": 3}', "3秒到7秒", "从3秒到7秒")
        ),
        *((text, (3, 7)) for text in ("starts at 3 s and ends at 7 s", '{"start_time": "0:03", "end_time": "0:07"}')),
        ("3.5 seconds to 7.2 seconds", (3.5, 7.2)),
        ("(3.5, 7.2)", (3.5, 7.2)),
        ("<t>3.5</t>s to <t>7.2</t>s", (3.5, 7.2)),
        (r"\boxed{3 to 7}", (3, 7)),
        ("at 3.5", None),
        ("1 min 2 s to 1 min 10 s", (62, 70)),
        ("1 h 1 min 2 s to 2 h", (3662, 7200)),
        ("1 to 2 minutes", (60, 120)),
        ("30 seconds to 1 minute", (30, 60)),
        ("3.5-7.2 and 9-10", (9, 10)),
        ("at 3, 5 to 7", (5, 7)),
        ("12:34.56s - 12:40.00s", (754.56, 760.0)),
        ("0:03—0:07", (3, 7)),
        ("−1 to 2", (-1, 2)),
        ("3 -7", (3, 7)),
        ("3 to -7", (3, -7)),
        ("3-5-7", None),
        ("1, 2, 3", None),
        ("[1, 2, 3, 4]", None),
        ("3 7", None),
        ("frame 3 to frame 7", None),
        ("10% to 20%", None),
        ("3 cats to 7 dogs", None),
        ("00:00:01:12 to 00:00:02:00", None),
        ("start 3, start 4, end 7", None),
    ],
)
def test_spans_are_read_in_all_forms(text, expected):
    assert parsing.parse_span(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[1,2,3,4]", ((1, 2, 3, 4),)),
        ('{"bbox_2d": [1, 2, 3, 4], "label":"x"}', ((1, 2, 3, 4),)),
        ("(1,2),(3,4)", ((1, 2, 3, 4),)),
        ("<|box_start|>(1,2),(3,4)<|box_end|>", ((1, 2, 3, 4),)),
        ("[[1,2],[3,4]]", ((1, 2, 3, 4),)),
        ("[[1,2,3,4],[5,6,7,8]]", ((1, 2, 3, 4), (5, 6, 7, 8))),
        ("a cat (1,2),(3,4) and a dog [5,6,7,8]", ((1, 2, 3, 4), (5, 6, 7, 8))),
        ("1,2,3,4", ((1, 2, 3, 4),)),
        ("[1 2 3 4]", ((1, 2, 3, 4),)),
        ("<box>[1,2,3,4]</box>", ((1, 2, 3, 4),)),
        ("<box>1,2,3,4</box>", ((1, 2, 3, 4),)),
        ('{"x1": 1, "y1": 2, "x2": 3, "y2": 4}', ((1, 2, 3, 4),)),
        ("[1e2,2,3,4]", ((100, 2, 3, 4),)),
        ("[−1,2,3,4]", ((-1, 2, 3, 4),)),
        ("[1,2],[3,4],[5,6],[7,8]", ()),  # two boxes or a polygon
        ("[1,2,3]", ()),
        ("1,2,3,4,5", ()),
        ("[1e999,2,3,4]", ()),
    ],
)
def test_boxes_are_read_in_all_forms(text, expected):
    assert parsing.parse_boxes(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *((text, "yes") for text in ("Yes", "Yes.", "是", "是的。", "对", "True", "The answer is yes", "yes and no")),
        *((text, "yes") for text in ("**Yes**", r"\boxed{yes}", "ＹＥＳ")),
        *((text, "no") for text in ("No, there isn't", "否", "不是", "没有", "False", "There is no car")),
        *((text, None) for text in ("not yes", "It is not true", "maybe yes or no", "Y", "", "eyes")),
    ],
)
def test_yes_and_no_are_read_in_all_forms(text, expected):
    assert parsing.parse_yesno(text) == expected


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("the cat", "cat", True),
        ("猫", "猫。", True),
        ("C++", "C#", False),
        ("C++", "c++.", True),
        ("A", "The", False),
        ("don't", "dont", True),
        ("don’t", "don't", True),
        ("+1", "-1", False),
        ("−1", "-1", True),
        ("+1", "1", True),
        ("3.5", "35", False),
        ("3.5", "3 5", False),
        ("1/2", "1 2", False),
        ("½", "1/2", True),
        ("1,000", "1000", True),
        ("3-4", "3 + 4", False),
        ("3 - 4", "3-4", True),
        ("x < 5", "x > 5", False),
        ("x < 5", "x<5", True),
        ("A+", "A-", False),
        ("A-", "A", False),
        ("10²", "102", False),
        (".5", "5", False),
        (r"\boxed{red}", "Red", True),
        ("**red** circle", "red, circle", True),
        ("red/blue", "red blue", True),
        ("snow-white", "snow white", True),
    ],
)
def test_texts_are_the_same_or_not(one, other, same):
    assert (parsing.normalize_text(one) == parsing.normalize_text(other)) is same
    assert score(say(one).text, ask("text", other)).value == same


@pytest.mark.parametrize(
    ("answer_type", "gold", "answer", "value"),
    [
        *(("mcq", "A", answer, 1) for answer in (r"\boxed{A}", "答案是A", "Ａ", "（A）")),
        *(("mcq", "A", answer, 0) for answer in ("", "  ", "A or B", "B left", "not B")),
        ("number", "0", "0", 1),
        ("number", "0", "0.004", 0),
        ("number", "-3", "−3", 1),
        ("number", "−3", "-3", 1),
        ("number", "-3", "3", 0),
        ("number", "three", "3", 1),
        ("number", "99.5", "100", 1),
        ("number", "1/2", "1/2", 1),
        ("number", "1/2", "0.5", 1),
        ("number", "1/2", "2", 0),
        ("number", "3", "3 people in 5 seconds", 1),
        ("number", "6", "5-6", 0),
        ("span", "[3, 7]", "3 to 7", 1),
        ("span", "3.0-7.0", "3 to 7", 1),
        ("span", "00:00:03,000 --> 00:00:07,000", "0:03 to 0:07", 1),
        ("span", "5 to 5", "5 to 5", 1),
        ("boxes", "[[10,20,30,40]]", "[10,20,30,40]", 1),
        ("boxes", "[10,20,30,40]", '[{"bbox_2d": [10,20,30,40]}]', 1),
        ("boxes", "[10,20,30,40]", "(10,20),(30,40)", 1),
        ("yesno", "yes", "是", 1),
        ("yesno", "yes", "not yes", 0),
    ],
)
def test_scores(answer_type, gold, answer, value):
    options = MOVES if answer_type == "mcq" else ()
    assert score(say(answer).text, ask(answer_type, gold, options)).value == value


@pytest.mark.parametrize(
    ("answer_type", "gold", "ambiguous", "unreadable"),
    [
        ("mcq", "A", "A or B", "I don't know"),
        ("number", "5", "5-6", "many"),
        ("span", "3 to 7", "3-5-7", "later"),
        ("boxes", "[1,2,3,4]", "(1,2),(3,4),(5,6),(7,8)", "there"),
        ("yesno", "yes", "perhaps yes, perhaps no", "perhaps"),
    ],
)
def test_an_ambiguous_answer_is_called_so(answer_type, gold, ambiguous, unreadable):
    example = ask(answer_type, gold, MOVES if answer_type == "mcq" else ())
    for text, method in ((ambiguous, "ambiguous"), (unreadable, "tag")):
        result = score(say(text).text, example)
        assert (result.parsed, result.value, result.method) == (None, 0, method)


@pytest.mark.parametrize("atom", ["1 ", "1,", "1-", "1 to ", "9", "(1,2)", "A ", "not ", r"\frac{1}", "start 1 ", "選"])
def test_long_texts_are_read_in_time(atom):
    """A response of thousands of tokens must not hold a step up."""
    text, begun = atom * (8000 // len(atom)), time.process_time()
    score(text, ask("mcq", "A", MOVES))
    for read in (parsing.parse_number, parsing.parse_span, parsing.parse_boxes, parsing.parse_yesno):
        read(text)
    assert time.process_time() - begun < 2
