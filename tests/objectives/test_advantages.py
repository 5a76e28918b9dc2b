"""Group-relative advantages against worked groups, and what must hold for any rewards."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jvlmm.errors import ConfigError
from jvlmm.objectives.advantages import difficulty, difficulty_weights, group_advantages, informative_groups

groups = st.sampled_from([(1, 2), (3, 5)]).flatmap(
    lambda shape: st.tuples(
        hnp.arrays(np.float32, shape, elements=st.floats(-4, 4, width=16)), hnp.arrays(np.bool_, shape)
    )
)


def test_hand_worked_group():
    # mean 1.5, deviations (1.5, 0, 0, −1.5), variance (2.25 + 2.25) / 3 = 1.5, std 1.2247449
    expected = 1.5 / (1.2247449 + 1e-4)
    np.testing.assert_allclose(
        group_advantages(np.array([[3.0, 1.5, 1.5, 0.0]])), [[expected, 0, 0, -expected]], rtol=1e-6
    )
    np.testing.assert_allclose(expected, 1.224645, atol=1e-6)


def test_without_scale_and_with_that_of_the_batch():
    rewards = np.array([[1.0, 0.0], [4.0, 0.0]])
    np.testing.assert_allclose(group_advantages(rewards, "none"), [[0.5, -0.5], [2, -2]])
    # all four: mean 1.25, squares 0.0625 + 1.5625 + 7.5625 + 1.5625 = 10.75, std (10.75 / 3) ** 0.5 = 1.8929694
    np.testing.assert_allclose(
        group_advantages(rewards, "batch"), np.array([[0.5, -0.5], [2, -2]]) / (1.8929694 + 1e-4), rtol=1e-6
    )


def test_failed_rollouts_take_no_part():
    rewards = np.array([[3.0, np.nan, 1.5, 1.5, 0.0]])
    advantages = group_advantages(rewards, valid=~np.isnan(rewards))
    np.testing.assert_array_equal(np.delete(advantages, 1, 1), group_advantages(np.array([[3.0, 1.5, 1.5, 0.0]])))
    assert advantages[0, 1] == 0


@pytest.mark.parametrize("scale", ["group", "none", "batch"])
def test_equal_rewards_give_exactly_zero(scale):
    """0.1 has no float32 of its own: the mean of several differs from it."""
    rewards = np.full((2, 7), 0.1, np.float32)
    rewards[1] = [0, 1, 0, 1, 0, 1, 0]
    advantages = group_advantages(rewards, scale)
    assert (advantages[0] == 0).all() and (advantages[1] != 0).all()
    np.testing.assert_array_equal(informative_groups(rewards), [False, True])


def test_a_group_with_one_reward_left_is_not_informative():
    rewards, valid = np.array([[1.0, 0.0, 0.0]]), np.array([[True, False, False]])
    assert not informative_groups(rewards, valid).any()
    assert not group_advantages(rewards, valid=valid).any()


@settings(deadline=None)  # the first examples compile
@given(groups)
def test_advantages_sum_to_zero_and_keep_the_order(case):
    rewards, valid = case
    advantages = np.asarray(group_advantages(rewards, valid=valid))
    np.testing.assert_allclose(advantages.sum(1), 0, atol=1e-3)
    assert np.isfinite(advantages).all() and not advantages[~valid].any()
    for reward, advantage, present in zip(rewards, advantages, valid, strict=True):
        assert (np.diff(advantage[present][np.argsort(reward[present])]) >= 0).all()


def test_groups_of_one_and_unknown_scales_are_refused():
    with pytest.raises(ConfigError, match="at least 2 rollouts a prompt"):
        group_advantages(np.ones((3, 1)))
    with pytest.raises(ConfigError, match="grpo.scale='ema' is unknown here"):
        group_advantages(np.ones((3, 2)), "ema")


def test_harder_prompts_weigh_more():
    hardness = difficulty(
        np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 5.0], [5.0, 5.0]]), 0.75, np.arange(8).reshape(4, 2) < 5
    )
    np.testing.assert_allclose(hardness, [0.25, -0.25, 0.75, 0])
    np.testing.assert_allclose(difficulty_weights(hardness, 2.0), np.exp([0.5, -0.5, 1.5, 0]), rtol=1e-6)
    np.testing.assert_array_equal(difficulty_weights(jnp.array([0.3]), 0.0), [1])
