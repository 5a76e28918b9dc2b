"""The registered rewards by hand-worked values, on bad gold answers, and on arbitrary text."""

import math
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_answers import ask, say

from jvlmm.data.example import Media
from jvlmm.errors import ConfigError, DataError
from jvlmm.rewards.completion import Completion
from jvlmm.rewards.registry import ANSWER_REWARDS, REWARDS, bind

FOUR = ("red", "blue", "green", "black")
BOX = "<box>[0,0,10,10]</box>"


@pytest.mark.parametrize(
    ("name", "answer_type", "gold", "answer", "value"),
    [
        ("accuracy", "mcq", "B", "(B)", 1),
        ("accuracy", "mcq", "B", "B. blue", 1),
        ("accuracy", "span", "1 to 3", "2 to 3", 0.5),
        ("accuracy", "boxes", BOX, "[0,0,10,5]", 0.5),
        ("multiple_choice", "mcq", "B", "[B]", 1),
        ("multiple_choice", "text", "A, C", "A and C", 1),
        ("multiple_choice", "text", "A, C", "A", 0),
        ("multi_answer", "text", "A, C", "C", 0.5),
        ("multi_answer", "text", "AC", "A. red, C. green", 1),
        ("multi_answer", "text", "A, C", "A, B, C", 0),
        ("multi_answer", "text", "A, C", "nothing", 0),
        ("numeric_strict", "number", "3", "3.0", 0),
        ("numeric_strict", "number", "3.0", "3.004", 1),
        ("numeric_strict", "number", "3.14", "3.141", 1),
        ("numeric_strict", "number", "1e300", "1e300", 1),
        ("numeric_tolerant", "number", "1000", "1,010", 1),
        ("numeric_tolerant", "number", "1000", "1,011", 0),
        ("numeric_tolerant", "number", "0", "0", 1),
        ("numeric_tolerant", "number", "0", "0.001", 0),
        ("regression", "number", "10", "12", 0.8),
        ("regression", "number", "-10", "-12", 0.8),
        ("regression", "number", "10", "25", 0),
        ("regression", "number", "0", "1", 0),
        ("regression", "number", "10", "ten or so", 1),
        ("regression", "number", "10", "nine or ten", 0),
        ("mra", "number", "100", "100", 1),
        ("mra", "number", "100", "105", 1),
        ("mra", "number", "1", "1.05", 1),
        ("mra", "number", "100", "106", 0.9),
        ("mra", "number", "100", "150", 0.1),
        ("mra", "number", "100", "151", 0),
        ("mra", "number", "0", "0", 1),
        ("ocr", "text", "one two three four", "one two three for", 0.75),
        ("ocr", "text", "one\ntwo", "one two", 1),
        ("ocr", "text", "one", "a b c d", 0),
        ("free_form", "text", "the cat sat on the mat", "a cat sits on a mat", 1 / 3),
        ("free_form", "text", "run dog", "running dogs", 1),
        ("temporal_iou", "span", "1 to 3", "2 to 4", 1 / 3),
        ("temporal_iou", "span", "1 to 3", "3 to 1", 0),
        ("spatial_iou", "boxes", BOX, "[0,0,10,5]", 0.5),
        ("spatial_iou", "boxes", BOX, "[0,0,10,10] or [0,0,10,5]", 0.5),
        ("tracking_iou", "boxes", BOX + "[0,0,4,4]", "[0,0,10,10] [0,0,4,2]", 0.75),
        ("tracking_iou", "boxes", BOX + "[0,0,4,4]", "[0,0,10,10]", 0.5),
        ("format", "text", "x", "x", 1),
    ],
)
def test_values_by_hand(name, answer_type, gold, answer, value):
    options = FOUR if answer_type == "mcq" or name.startswith("multi") else ()
    assert REWARDS[name](say(answer), ask(answer_type, gold, options)) == pytest.approx(value)


def test_a_span_is_worth_less_the_further_its_ends_are_off():
    example = ask("span", "10 to 30", meta={"duration": 100})
    assert REWARDS["time_r1_iou"](say("20 to 40"), example) == pytest.approx(1 / 3 * 0.9 * 0.9)
    assert REWARDS["time_r1_iou"](say("10 to 500"), ask("span", "10 to 30", meta={"duration": 100})) == 0
    clip = ask("span", "10 to 30", media=(Media("video", "a.mp4", 50.0, 150.0),))
    assert REWARDS["time_r1_iou"](say("20 to 40"), clip) == pytest.approx(1 / 3 * 0.9 * 0.9)
    assert REWARDS["time_r1_iou"](say("soon"), clip) == 0


def test_the_survey_form_pays_thresholds_and_charges_length():
    reward = bind("survey_iou", {"alpha": 1.0, "thresholds": [0.3, 0.5], "bonuses": [0.1, 0.2], "gamma": 0.5})
    example = ask("span", "10 to 30", meta={"duration": 100})
    assert reward(say("10 to 30"), example) == pytest.approx(1 + 0.1 + 0.2 - 0.5 * 0.2)
    assert reward(say("20 to 40"), example) == pytest.approx(1 / 3 + 0.1 - 0.5 * 0.2)
    assert reward(say("0 to 500"), example) == pytest.approx(0.04 - 0.5)  # IoU 20/500, all of the video
    assert reward(say("40 to 20"), example) == 0


def test_shaping_by_hand():
    right, wrong = ask("mcq", "B", FOUR), ask("mcq", "A", FOUR)
    overlong = bind("overlong", {"max_tokens": 100, "buffer": 20})
    assert [overlong(say("B", n), right) for n in (0, 80, 85, 100, 101)] == [0, 0, -0.25, -1, -1]
    length = bind("length", {})
    assert [length(say("B", n), right) for n in (319, 320, 512, 513)] == [0, 1, 1, 0]
    assert length(say("B", 400), wrong) == length(say("B", 400, finished=False), right) == 0
    repetition = bind("repetition", {"ngram": 2})
    assert repetition(Completion("a b A b c", 5), right) == -0.25  # (a b) twice among 4
    assert repetition(Completion("a", 1), right) == repetition(Completion("", 0), right) == 0
    budget = bind("budget", {"max_tokens": 100, "saving": 0.5, "repeating": 2.0, "ngram": 1})
    assert budget(Completion("B", 40), right) == pytest.approx(0.5 * 0.6)
    assert budget(Completion("B", 400), right) == 0
    assert budget(Completion("no no no no", 40), right) == -1.5


@pytest.mark.parametrize(
    ("name", "answer_type", "gold"),
    [
        ("accuracy", "number", "many"),
        ("accuracy", "mcq", "Z"),
        ("multi_answer", "mcq", "A, Z"),
        ("numeric_strict", "number", "many"),
        ("regression", "text", "red"),
        ("mra", "text", ""),
        ("ocr", "text", " "),
        ("free_form", "text", "红色"),
        ("temporal_iou", "span", "3 to 1"),
        ("temporal_iou", "span", "soon"),
        ("time_r1_iou", "span", "1 to 3"),
        ("spatial_iou", "boxes", BOX + BOX),
        ("spatial_iou", "boxes", "[5,5,5,9]"),
        ("tracking_iou", "boxes", "nowhere"),
    ],
)
def test_a_gold_answer_the_reward_cannot_use_is_a_data_error(name, answer_type, gold):
    with pytest.raises(DataError, match="q1"):
        REWARDS[name](say("1"), ask(answer_type, gold, FOUR))


@pytest.mark.parametrize("seconds", [0, -1, math.nan, math.inf, "100", True])
def test_a_duration_must_be_positive_seconds(seconds):
    with pytest.raises(DataError, match="duration"):
        REWARDS["time_r1_iou"](say("1 to 2"), ask("span", "1 to 2", meta={"duration": seconds}))


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("acuracy", {}, "allowed: accuracy, "),
        ("overlong", {}, "needs the arguments max_tokens, buffer"),
        ("overlong", {"max_tokens": 10, "buffer": 20}, "buffer = 20"),
        ("overlong", {"max_tokens": "ten", "buffer": 2}, "overlong"),
        ("repetition", {"ngram": 0}, "ngram = 0"),
        ("repetition", {"n": 3}, "no argument 'n'; allowed: ngram"),
        ("length", {"min_tokens": 9, "max_tokens": 3}, "min_tokens = 9"),
        ("budget", {"max_tokens": 0}, "at least 1"),
        ("numeric_tolerant", {"tolerance": -1}, "tolerance = -1"),
        ("survey_iou", {"alpha": 1, "thresholds": [0.5], "bonuses": [], "gamma": 0}, "one bonus"),
        ("format", {"strict": True}, "allowed: none"),
    ],
)
def test_impossible_arguments_are_refused_at_once(name, arguments, message):
    with pytest.raises(ConfigError, match=message):
        bind(name, arguments)


_ARGUMENTS = {
    "overlong": {"max_tokens": 100, "buffer": 20},
    "budget": {"max_tokens": 100},
    "survey_iou": {"alpha": 1, "thresholds": [0.5], "bonuses": [0.5], "gamma": 1},
}
_RANGES = {"overlong": (-1, 0), "repetition": (-1, 0), "budget": (-1, 1), "survey_iou": (-1, 1.5)}
_TAGGED = {"tagged_span": "From <t>1</t>s to <t>2</t>s", "tagged_box": "<box>[1,2,3,4]</box>"}  # as they are asked for
_GOLD = {"mcq": "A", "yesno": "no", "number": "7.5", "text": "A red 7", "span": "1 to 2", "boxes": "[1,2,3,4]"}
_TEXTS = st.lists(
    st.sampled_from(
        ["<think>", "</think>", "<answer>", "</answer>", " to ", "1,000", "[1,2,3,4]", "A", "and", ".", "-"]
    )
    | st.text(max_size=8)
    | st.integers().map(str)
    | st.floats().map(str)
).map("".join)


def usable(name):
    """The reward with arguments, and an example of each answer type whose gold answer it can use."""
    reward = bind(name, _ARGUMENTS.get(name, {}))
    for answer_type, gold in _GOLD.items():
        example = ask(answer_type, gold, FOUR, meta={"duration": 9.0})
        with suppress(DataError):
            reward(Completion("", 0), example)
            yield reward, example


@pytest.mark.parametrize("name", REWARDS)
@settings(max_examples=40, deadline=None)
@given(text=_TEXTS, num_tokens=st.integers(0, 10**9))
def test_every_reward_of_any_text_is_in_its_range(name, text, num_tokens):
    low, high = _RANGES.get(name, (0, 1))
    for reward, example in usable(name):
        assert low - 1e-9 <= reward(Completion(text, num_tokens), example) <= high + 1e-9


@pytest.mark.parametrize("name", ANSWER_REWARDS)
def test_the_gold_answer_earns_all_and_no_answer_nothing(name):
    pairs = list(usable(name))
    assert pairs
    for reward, example in pairs:
        rouge = {"free_form": ("mcq", "yesno"), "strict_or_free_form": ("yesno",)}
        one_word = example.answer_type in rouge.get(name, ())  # it has no ROUGE-2
        right = say(_TAGGED.get(name, example.answer))
        assert reward(right, example) == pytest.approx(2 / 3 if one_word else 1), example
        assert reward(Completion("", 0), example) == reward(say(""), example) == 0, example
