"""The published functions of Video-R1, value by value, and what our defaults do otherwise."""

import pytest
from toy_answers import ask

from jvlmm.errors import DataError
from jvlmm.rewards import video_r1
from jvlmm.rewards.completion import Completion
from jvlmm.rewards.registry import REWARDS
from jvlmm.rewards.rewarder import make_rewarder
from jvlmm.rewards.terms import RewardOptions

ANSWER_TYPES = {"multiple choice": "mcq", "numerical": "number", "regression": "number"}
GOLDEN = [  # problem type, output, gold, reward
    ("multiple choice", "<answer>B</answer>", "B", 1),
    ("multiple choice", "<answer> B </answer>", "B", 1),
    ("multiple choice", "<answer>B.</answer>", "B", 0),
    ("multiple choice", "<answer>b</answer>", "B", 0),
    ("multiple choice", "<answer>A</answer><answer>B</answer>", "B", 0),
    ("numerical", "<answer>3</answer>", "3", 1),
    ("numerical", "<answer>3.0</answer>", "3", 0),
    ("numerical", "<answer>3.141</answer>", "3.14", 1),
    ("numerical", "<answer>1,000</answer>", "1000", 0),
    ("numerical", "<answer>42 apples</answer>", "42", 0),
    ("numerical", "<answer>2.675</answer>", "2.68", 0),
    ("OCR", "<answer>hello world</answer>", "hello world", 1),
    ("OCR", "<answer>hello</answer>", "hello world", 0.5),
    ("free-form", "<answer>a cat sits on a mat</answer>", "the cat sat on the mat", 0.333333),
    ("free-form", "<answer>dogs</answer>", "cat", 0),
    ("free-form", "<answer>running dogs</answer>", "run dog", 1),
    ("regression", "<answer>12</answer>", "10", 0.79999999992),
    ("regression", "<answer>25</answer>", "10", 0),
    ("regression", "<answer>0</answer>", "0", 0),
]
FORMATS = [
    ("<think>a</think><answer>b</answer>", 1),
    ("<think>a\nb</think>\n\n<answer>c</answer>", 1),
    ("<think>a</think><answer>b</answer>\n", 0),
    ("<think>a</think> so <answer>b</answer>", 0),
]


def exactly(reward):
    return pytest.approx(reward, abs=1e-6 if reward == 0.333333 else 1e-13, rel=0)


@pytest.mark.parametrize(("problem_type", "output", "gold", "reward"), GOLDEN)
def test_golden_values(problem_type, output, gold, reward):
    assert video_r1.answer_reward(problem_type, output, f"<answer>{gold}</answer>") == exactly(reward)
    example = ask(ANSWER_TYPES.get(problem_type, "text"), gold, meta={"problem_type": problem_type})
    rewarder = make_rewarder(RewardOptions(preset="video-r1"))
    rewarder.check(example)
    table = rewarder([Completion(output, 5)], [example])
    assert table.parts["accuracy"] == table.accuracy == table.total == exactly(reward)
    assert table.parts["format"] == 0
    assert not table.failures


@pytest.mark.parametrize(("text", "reward"), FORMATS)
def test_golden_formats(text, reward):
    assert video_r1.format_reward(text) == reward
    table = make_rewarder(RewardOptions(preset="video-r1"))([Completion(text, 5)], [ask("text", "x")])
    assert table.parts["format"] == reward


@pytest.mark.parametrize(
    ("name", "text", "answer_type", "gold"),
    [
        ("accuracy", "<answer>B.</answer>", "mcq", "B"),
        ("accuracy", "<answer>b</answer>", "mcq", "B"),
        ("accuracy", "<answer>A</answer><answer>B</answer>", "mcq", "B"),
        ("numeric_strict", "<answer>1,000</answer>", "number", "1000"),
        ("numeric_strict", "<answer>42 apples</answer>", "number", "42"),
        ("numeric_strict", "<answer>2.675</answer>", "number", "2.68"),
        ("regression", "<answer>0</answer>", "number", "0"),
        ("format", "<think>a</think><answer>b</answer>\n", "mcq", "B"),
    ],
)
def test_our_own_rewards_mend_what_is_plainly_wrong(name, text, answer_type, gold):
    options = ("red", "blue") if answer_type == "mcq" else ()
    assert REWARDS[name](Completion(text, 5), ask(answer_type, gold, options)) == 1


def test_the_problem_type_comes_from_meta_the_question_type_or_the_answer_type():
    words = Completion("<answer>hello</answer>", 5)
    for fields in ({"meta": {"problem_type": "OCR"}}, {"question_type": "OCR"}):
        assert video_r1.video_r1_accuracy(words, ask("text", "hello world", **fields)) == 0.5
    assert video_r1.video_r1_accuracy(words, ask("text", "hello world")) == pytest.approx(4 / 9)  # ROUGE
    assert video_r1.video_r1_accuracy(words, ask("yesno", "hello")) == 1


def test_what_is_no_number_earns_nothing():
    for answer in ("nan", "inf", "", "many"):
        for problem_type in ("numerical", "regression"):
            assert video_r1.answer_reward(problem_type, f"<answer>{answer}</answer>", "<answer>3</answer>") == 0


@pytest.mark.parametrize(
    "example",
    [
        ask("span", "1 to 2"),
        ask("number", "many"),
        ask("number", "nan"),
        ask("text", "x", meta={"problem_type": "regression"}),
        ask("text", " "),
    ],
)
def test_rows_without_what_their_type_needs_are_refused(example):
    with pytest.raises(DataError, match="q1"):
        make_rewarder(RewardOptions(preset="video-r1")).check(example)


def test_an_unknown_problem_type_names_those_allowed():
    with pytest.raises(ValueError, match="multiple choice, numerical"):
        video_r1.answer_reward("riddle", "", "")
