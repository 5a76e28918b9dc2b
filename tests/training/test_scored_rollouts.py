"""Rollouts and their rewards, without a model: what has no reward is in no mean, and not learnt from."""

import json
from dataclasses import replace
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from jvlmm.data.example import Example, Media
from jvlmm.data.groups import Rollout
from jvlmm.data.prompt_stream import Prompt
from jvlmm.errors import ConfigError
from jvlmm.objectives.grpo import GRPOConfig
from jvlmm.objectives.profiles import PROFILES
from jvlmm.rewards.groups import LengthBonus
from jvlmm.rewards.rewarder import make_rewarder
from jvlmm.rewards.table import RewardTable
from jvlmm.rewards.terms import RewardOptions, RewardTerm
from jvlmm.rollout.sampling import SamplingOptions
from jvlmm.training import policy_loss
from jvlmm.training.advantage_estimator import AdvantageEstimator
from jvlmm.training.experience import Gatherer, GroupOptions
from jvlmm.training.frame_order import FrameOrder

SAYS = ("<think>so</think><answer>A</answer>", "<think>so</think><answer>B</answer>", "A")
PROMPTS = [
    Prompt(Example(name, "Which?", "A", "mcq", options=("left", "right"), question_type="way"), None) for name in "pq"
]
NAN = float("nan")


class Engine:
    """Three rollouts of each prompt, of 1, 2 and 3 tokens."""

    sampling = SamplingOptions(max_tokens=8)
    tokenizer = SimpleNamespace(decode=lambda tokens: SAYS[len(tokens) - 1])
    seconds = {"prefill": 0.0}

    def sample(self, params, prompts, features, size, seed):
        return [[Rollout(np.ones(n), np.zeros(n), np.zeros(n), finished=True) for n in (1, 2, 3)] for _ in prompts]


def gatherer(*terms, preset="default", **options):
    features = SimpleNamespace(of=lambda params, prompts: [np.zeros((1, 1)) for _ in prompts])
    return Gatherer(Engine(), features, make_rewarder(RewardOptions(preset, terms)), GroupOptions(size=3, **options))


@pytest.fixture
def user_term(tmp_path):
    def term(body):
        (tmp_path / "mine.py").write_text(f"def f(text, example):\n    {body}\n")
        return RewardTerm("mine", f"{tmp_path}/mine.py:f")

    return term


def test_a_rollout_without_a_reward_leaves_the_groups_mean(user_term):
    """The first of p cannot be scored, and none of q: the two others of p are compared with each other alone."""
    term = user_term(f"return 1 / 0 if example.id == 'q' or text == '{SAYS[0]}' else 3.0 * ('B' in text)")
    experience = gatherer(term, preset=None).gather(None, PROMPTS, None, 0)
    p, q = experience.groups
    np.testing.assert_array_equal(p.scored, [False, True, True])
    np.testing.assert_array_equal(p.rewards, [0, 3, 0])
    assert p.informative and not q.informative and not q.scored.any()
    assert [record["reward"] for record in p.records(1)] == [None, 3.0, 0.0]
    json.dumps([*p.records(1), *q.records(1)], allow_nan=False)
    metrics = experience.metrics
    assert (metrics["reward"], metrics["reward_failures"], metrics["without_reward"]) == (1.5, 4, pytest.approx(4 / 6))
    assert metrics["reward_std"] == pytest.approx(1.5 * 2**0.5) and np.isfinite(list(metrics.values())).all()
    rewards, valid = (np.stack([getattr(group, name) for group in (p, q)]) for name in ("rewards", "scored"))
    advantages, _ = AdvantageEstimator(GRPOConfig())(rewards, ["way"] * 2, valid)
    np.testing.assert_allclose(advantages, [[0, 0.5**0.5, -(0.5**0.5)], [0, 0, 0]], atol=1e-4)


@pytest.mark.parametrize("objective", [PROFILES["ema_grpo"], replace(GRPOConfig(), difficulty=0.5)])
def test_what_an_objective_remembers_knows_nothing_of_them_either(objective):
    seen, told = AdvantageEstimator(objective), AdvantageEstimator(objective)
    all_valid = np.array([[1.0, 3.0], [2.0, 4.0]])
    with_junk = np.array([[1.0, 3.0, 99.0], [2.0, 4.0, -99.0]])
    valid = np.array([[True, True, False]] * 2)
    for _ in range(2):
        advantages, weights = seen(all_valid, ["a", "b"])
        masked, masked_weights = told(with_junk, ["a", "b"], valid)
        np.testing.assert_allclose(masked[:, :2], advantages, rtol=1e-6)
        np.testing.assert_allclose(masked_weights, weights, rtol=1e-6)
        assert not masked[:, 2].any()
    assert seen.get_state() == told.get_state()
    told(with_junk, ["a", "b"], np.zeros_like(valid))
    assert told.get_state() == seen.get_state(), "a step without rewards leaves nothing behind"
    for junk in (np.nan, -np.inf):
        advantages, weights = told(np.array([[1.0, 3.0, junk], [2.0, 4.0, junk]]), ["a", "b"])
        assert np.isfinite(advantages).all() and np.isfinite(weights).all() and not advantages[:, 2].any()
    assert np.isfinite([*told.get_state()["recent"], *np.ravel(list(told.get_state()["moments"].values()))]).all()


def test_where_no_rollout_of_a_step_has_a_reward_the_run_stops_with_the_reason(user_term):
    failing = gatherer(user_term("return 1 / 0"))
    with pytest.raises(ConfigError, match="none of the 6 rollouts.*'mine' example 'p': ZeroDivisionError: .*line 2"):
        failing.gather(None, PROMPTS, None, 0)


def test_a_bonus_for_length_is_a_part_of_its_own():
    """Two are correct, of which one is long enough."""
    experience = gatherer(length_bonus=LengthBonus(2, 3, 0.5)).gather(None, PROMPTS, None, 0)
    for group in experience.groups:
        np.testing.assert_array_equal(group.parts["length_bonus"], [0, 0, 0.5])
        np.testing.assert_allclose(group.rewards, [1.0, 0.1, 0.9 + 0.5])
    assert experience.metrics["reward/length_bonus"] == pytest.approx(0.5 / 3)


@pytest.mark.parametrize("bonus", [{"length_bonus": LengthBonus(2, 3, 0.5)}, {"frame_order": FrameOrder()}])
def test_a_bonus_for_right_answers_needs_to_know_which_are_right(user_term, tmp_path, bonus):
    """A function of the user's tells a value; what is right is another thing, which it may tell too."""
    with pytest.raises(ConfigError, match=f"group.{next(iter(bonus))} pays for right answers, and no term of rewards"):
        gatherer(user_term("return 1.0"), preset=None, **bonus).gather(None, PROMPTS, None, 0)
    path = tmp_path / "telling.py"
    path.write_text(
        "def f(data_source, solution_str, ground_truth, extra_info):\n    return {'score': 1.0, 'acc': 1.0}\n"
    )
    telling = gatherer(RewardTerm("telling", f"{path}:f"), preset=None, **bonus)
    assert next(iter(bonus)) in telling.gather(None, PROMPTS, None, 0).groups[0].parts


@pytest.mark.parametrize(
    ("form", "shuffled", "bonus"),
    [
        ("video-r1", (NAN, NAN, NAN), (NAN, NAN, NAN)),  # what order is worth is not known
        ("video-r1", (NAN, 1.0, NAN), (NAN, 0, 0)),  # 1/2 in order, 1 shuffled
        ("video-r1", (NAN, 0.0, 1.0), (NAN, 0.3, 0)),
        ("paper", (NAN, NAN, NAN), (NAN, NAN, NAN)),
        ("paper", (NAN, 1.0, NAN), (NAN, 0, 0)),
        ("paper", (NAN, 0.0, NAN), (NAN, 0.15, 0)),
    ],
)
def test_rollouts_without_a_reward_do_not_say_what_the_order_of_frames_is_worth(monkeypatch, form, shuffled, bonus):
    """In order the first of three cannot be scored, the second is right; of shuffled frames as told."""
    scores = iter(([NAN, 1.0, 0.0], shuffled))

    def rewarder(completions, examples):
        values = np.array(next(scores))
        return RewardTable(values, {"accuracy": values}, values, {}, {})

    monkeypatch.setattr("jvlmm.training.experience.shuffled_frames", lambda sequence, seed: sequence)
    video = replace(PROMPTS[0].example, media=(Media("video", "v.mp4"),))
    gather = gatherer(frame_order=FrameOrder(form=form, shuffled=3))
    gather.rewarder = rewarder
    (group,) = gather.gather(None, [Prompt(video, None)], None, 0).groups
    np.testing.assert_allclose(group.parts["frame_order"], bonus)
    np.testing.assert_allclose(group.rewards, np.nan_to_num([0, 1 + np.nan_to_num(bonus[1]), 0]))


def test_a_group_whose_rewards_failed_has_not_been_compared(user_term):
    """It does not rest as one whose rewards were all equal."""
    term = user_term("return 1 / 0 if example.id == 'q' else 1.0")
    p, q = gatherer(term, preset=None).gather(None, PROMPTS, None, 0).groups
    assert (p.informative, p.compared) == (False, True)
    assert (q.informative, q.compared) == (False, False)


def test_the_mean_weight_of_tokens_is_that_of_the_tokens_learnt(monkeypatch):
    """TW-GRPO with overlong filtering: what was cut off is neither in the sum nor in the tokens it is divided by."""
    mask = np.array([[[True, True, False], [True, True, True]]])
    divergence = np.array([[0.0, 1.0, 2.0]], np.float32)
    monkeypatch.setattr(policy_loss, "diverging_log_probs", lambda *_: (jnp.zeros(mask.shape), divergence))
    batch = SimpleNamespace(
        completion_mask=mask,
        advantages=np.ones((1, 2), np.float32),
        teacher=None,
        old_log_probs=None,
        reference_log_probs=None,
        sampler_log_probs=np.zeros(mask.shape, np.float32),
        prompt_weights=np.ones(1, np.float32),
        rollout_mask=np.ones((1, 2), bool),
        offline=None,
        truncated=np.array([[False, True]]),
    )
    objective = replace(PROFILES["tw_grpo"], token_weight=3.0)
    _, count, sums = policy_loss.make_policy_loss(None, objective)(None, batch)
    assert (count, sums["tokens"]) == (5, 2), "the loss is divided by all tokens"
    assert sums["token_weight_sum"] == pytest.approx(1 + 2)
