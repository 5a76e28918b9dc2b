"""Rewards of texts; makes `toy_training` importable by the tests and by the processes they start."""

import sys
from pathlib import Path

import pytest
from drawn_model import config, params, processor, tokenizer, without_eos  # noqa: F401

from jvlmm.rewards.rewarder import make_rewarder
from jvlmm.rewards.terms import RewardOptions, RewardTerm

sys.path.insert(0, str(Path(__file__).parent))

REWARDS = """
def vowels(completion, example):
    return sum(map(completion.count, "aeiou e")) / 10 + len(completion) / 100


def nothing(completion, example):
    return 0.0


calls = 0


def accuracy(data_source, solution_str, ground_truth, extra_info):
    return {"score": 0.0, "acc": 1.0}


def failing(completion, example):
    global calls
    calls += 1
    if calls % 10 == 0:
        raise RuntimeError("the tenth call")
    return len(completion) / 100
"""


@pytest.fixture(scope="module")
def rewards(tmp_path_factory):
    """`rewards(NAME)`: the rewarder of one function of the file."""
    path = tmp_path_factory.mktemp("rewards") / "rewards.py"
    path.write_text(REWARDS)
    return lambda name: make_rewarder(RewardOptions(None, (RewardTerm(name, f"{path}:{name}"),)))
