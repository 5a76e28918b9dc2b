"""Rewards in users' files: three signatures, and what is refused at the start."""

from pathlib import Path

import numpy as np
import pytest
from toy_answers import ask, say

from jvlmm.data.example import Example, Media
from jvlmm.errors import ConfigError
from jvlmm.rewards.rewarder import make_rewarder
from jvlmm.rewards.terms import RewardOptions, RewardTerm

EXAMPLES = (
    ask("mcq", "B", ("red", "blue"), benchmark="shapes", meta={"index": 7}),
    ask("number", "3", question_type="count", meta={"data_source": "mine"}),
)
COMPLETIONS = (say("B", 5), say("4", 6, finished=False))

OURS = """
def reward(completion: str, example, bonus=0.0) -> float:
    return float(example.answer in completion) + bonus
"""
SEQUENTIAL = """
REWARD_NAME = "mine"
REWARD_TYPE = "sequential"

def compute_score(reward_input, format_weight=0.5):
    right = float(f"<answer>{reward_input['ground_truth']}<" in reward_input["response"])
    score = {"overall": right + format_weight, "format": 1.0, "accuracy": right, "note": "seen", "seen": [1, 2]}
    return score | {"length": reward_input["response_length"]}
"""
BATCH = """
REWARD_NAME = "mine"

def compute_score(reward_inputs):
    return [{"overall": float(i), "accuracy": 1.0} for i, _ in enumerate(reward_inputs)]
"""
VERL = """
def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    if data_source == "mine":
        return {"score": extra_info["num_tokens"], "acc": 0.5 - extra_info["finished"]}
    return extra_info["index"] + (ground_truth in solution_str)
"""


@pytest.fixture
def write(tmp_path):
    def write_file(text):
        (tmp_path / "mine.py").write_text(text)
        return str(tmp_path / "mine.py")

    return write_file


def rewarder_of(reward, **fields):
    return make_rewarder(RewardOptions(None, (RewardTerm("mine", reward, **fields),)))


def test_our_signature(write):
    table = rewarder_of(write(OURS) + ":reward", arguments={"bonus": 0.5})(COMPLETIONS, EXAMPLES)
    np.testing.assert_array_equal(table.total, [1.5, 0.5])
    assert np.isnan(table.accuracy).all()


def test_easyr1_one_at_a_time(write):
    table = rewarder_of(write(SEQUENTIAL) + ":compute_score")(COMPLETIONS, EXAMPLES)
    np.testing.assert_array_equal(table.total, [1.5, 0.5])
    np.testing.assert_array_equal(table.accuracy, [1, 0])
    assert set(table.details) == {"mine.format", "mine.accuracy", "mine.length"}
    np.testing.assert_array_equal(table.details["mine.length"], [5, 6])
    assert table.metrics(EXAMPLES)["reward/mine.length"] == 5.5


BY_TYPE = """
REWARD_NAME = "unified"
REWARD_TYPE = "batch"
TYPES = ("multiple choice", "numerical", "boolean", "open-ended", "temporal grounding", "spatial grounding")

def compute_score(reward_inputs, format_weight=0.1):
    scores = []
    for given in reward_inputs:
        right = given["problem_type"] in TYPES and given["ground_truth"] in given["response"]
        expected = {"A": ("video", "Which?\\nA. red\\nB. blue"), "3": ("image", "How many?")}[given["ground_truth"]]
        fits = (given["data_type"], given["problem"]) == expected and given["hard"] == 1
        scores.append({"overall": right * fits * given["problem_id"] + format_weight, "accuracy": right})
    return scores
"""


def test_easyvideor1s_files_get_their_fields_and_all_of_the_meta(write):
    """A right answer is worth all of it, not the weight of the format alone."""
    reward = write(BY_TYPE) + ":compute_score"
    video, image = (Media("video", "v.mp4"),), (Media("image", "i.png"),)
    examples = [
        Example("a", "Which?", "A", "mcq", video, ("red", "blue"), meta={"problem_id": 7, "hard": 1}),
        Example("b", "How many?", "3", "number", image, meta={"problem_id": 8, "hard": 1}),
        Example("c", "How many?", "3", "text", image, meta={"problem_type": "math", "problem_id": 9, "hard": 1}),
    ]
    table = rewarder_of(reward)([say("A"), say("3"), say("3")], examples)
    np.testing.assert_allclose(table.total, [7.1, 8.1, 0.1])
    assert not table.failures


@pytest.mark.parametrize("media", ["video", "image", None])
def test_easyr1s_input_of_a_row_without_meta(write, media):
    path = write('REWARD_TYPE = "sequential"\ndef f(given):\n    return {"overall": KINDS[given["data_type"]]}\n')
    Path(path).write_text(Path(path).read_text() + 'KINDS = {"video": 1, "image": 2, "text": 3}\n')
    example = ask("text", "x", media=(Media(media, "m"),) if media else ())
    assert rewarder_of(path + ":f")([say("x")], [example]).total == {"video": 1, "image": 2, None: 3}[media]


def test_easyr1_in_a_batch_of_the_rows_the_term_takes(write):
    reward = write(BATCH) + ":compute_score"
    np.testing.assert_array_equal(rewarder_of(reward)(COMPLETIONS, EXAMPLES).total, [0, 1])
    table = rewarder_of(reward, question_types=("count",))(COMPLETIONS, EXAMPLES)
    np.testing.assert_array_equal(table.parts["mine"], [np.nan, 0])
    np.testing.assert_array_equal(table.accuracy, [np.nan, 1])


def test_verl(write):
    table = rewarder_of(write(VERL) + ":compute_score")(COMPLETIONS, EXAMPLES)
    np.testing.assert_array_equal(table.total, [8, 6])
    np.testing.assert_array_equal(table.accuracy, [np.nan, 0.5])


def test_a_file_that_raises_now_and_then(write):
    calls = "seen = []\ndef reward(completion, example):\n    seen.append(0)\n    return 1 / (len(seen) % 10)\n"
    table = rewarder_of(write(calls) + ":reward")(COMPLETIONS * 15, EXAMPLES * 15)
    assert table.failures["mine"].count == 3 and np.isnan(table.total).sum() == 3
    assert "ZeroDivisionError: division by zero" in table.failures["mine"].reason
    assert "mine.py, line 4" in table.failures["mine"].reason


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("1 / 0", "ZeroDivisionError.*mine.py, line 4"),
        ("[{'overall': 1.0}]", "1 results for 2 completions"),
        ("None", "TypeError"),
    ],
)
def test_a_batch_that_fails_fails_whole(write, body, reason):
    path = write(f'REWARD_NAME = "x"\nREWARD_TYPE = "batch"\ndef f(inputs):\n    return {body}\n')
    table = rewarder_of(path + ":f")(COMPLETIONS, EXAMPLES)
    assert table.failures["mine"].count == 2 and np.isnan(table.total).all()
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(table.failures["mine"].reason)


def test_a_dict_without_the_reward_fails_alone(write):
    path = write('REWARD_NAME = "x"\ndef f(inputs):\n    return [{"overall": 1}, {"accuracy": 1}]\n')
    table = rewarder_of(path + ":f")(COMPLETIONS, EXAMPLES)
    np.testing.assert_array_equal(table.total, [1, np.nan])
    assert "without 'overall', only accuracy" in table.failures["mine"].reason


@pytest.mark.parametrize(
    ("text", "function", "message"),
    [
        ("def reward(a, b):\n    return (1\n", "reward", r"mine.py, line 2: .*never closed"),
        ("def reward(a, b):\n\treturn 1\n        return 2\n", "reward", "mine.py, line 3"),
        ("x = 1\nimport no_such_module\n", "reward", "does not run: ModuleNotFoundError.*mine.py, line 2"),
        ("raise SystemExit(3)\n", "reward", "SystemExit: 3.*line 1"),
        ("x\0 = 1\n", "reward", "mine.py, line 1"),
        ("\ndef score(a, b): ...\n", "reward", r"no function 'reward'; the file has score \(line 2\)"),
        ("reward = 3\n", "reward", "no function 'reward'; the file has no functions"),
        (
            "\n\ndef reward(a):\n    return 1\n",
            "reward",
            r"line 3: reward\(a\) has none of the signatures.*EasyR1.*verl",
        ),
        ("def reward(a, b, c): ...\n", "reward", r"\(completion: str, example\) -> float"),
        ("async def reward(a, b): ...\n", "reward", "none of the signatures"),
        ("def reward(data_source, solution_str, ground_truth): ...\n", "reward", "none of the signatures"),
        ("def reward(a, b, *, c): ...\n", "reward", "missing a required.*'c'"),
        ('REWARD_TYPE = "both"\ndef reward(a): ...\n', "reward", "REWARD_TYPE = 'both'"),
        ("def reward(a, b): ...\n", "", "path/to/file.py:function"),
    ],
)
def test_files_that_cannot_be_used_are_refused_at_the_start(write, text, function, message):
    with pytest.raises(ConfigError, match=message):
        rewarder_of(f"{write(text)}:{function}")


def test_arguments_the_function_does_not_take_are_refused(write):
    with pytest.raises(ConfigError, match="unexpected keyword argument 'bonsu'"):
        rewarder_of(write(OURS) + ":reward", arguments={"bonsu": 1})


@pytest.mark.parametrize(
    ("reward", "message"), [("mine.py", "path/to/file.py:function"), ("no.py:f", "cannot be read")]
)
def test_the_file_must_be_named_and_there(reward, message):
    with pytest.raises(ConfigError, match=message):
        rewarder_of(reward)


def test_dataclasses_in_the_file_work(write):
    text = (
        "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass A:\n    x: int = 1\n"
    )
    path = write(text + "def reward(completion, example):\n    return A().x\n")
    assert rewarder_of(path + ":reward")(COMPLETIONS, EXAMPLES).total.tolist() == [1, 1]
