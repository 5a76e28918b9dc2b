"""Rollouts that another policy wrote: a surrogate of their own (LUFFY), and no part in the figures of the others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvlmm.errors import ConfigError
from jvlmm.objectives.grpo import GRPOConfig, policy_loss
from jvlmm.objectives.surrogates import offline_surrogate

LOG_PROBS = np.log(np.array([[[0.5, 0.1, 0.9], [0.2, 0.4, 0.3]]], np.float32))
MASK = np.array([[[True, True, False], [True, True, True]]])
ADVANTAGES = np.array([[1.5, -0.5]], np.float32)
OFFLINE = np.array([[True, False]])


def test_the_surrogate_is_that_of_a_hand_worked_vector():
    found = offline_surrogate(LOG_PROBS[0, 0], jnp.float32(1.5), 0.1)
    np.testing.assert_allclose(found, [-1.5 * 0.5 / 0.6, -1.5 * 0.1 / 0.2, -1.5 * 0.9 / 1.0], rtol=1e-6)


def test_a_group_has_both_surrogates():
    total, count, extras = policy_loss(LOG_PROBS, None, ADVANTAGES, MASK, GRPOConfig(), offline=OFFLINE)
    offline = -1.5 * (0.5 / 0.6 + 0.1 / 0.2) / 2  # mean over the tokens of a rollout
    np.testing.assert_allclose(total, offline + 0.5, rtol=1e-6)  # on-policy ratios are 1
    assert count == 2 and extras["tokens"] == 5 and extras["offline_tokens"] == 2
    assert extras["ratio_sum"] == 3
    np.testing.assert_allclose(extras["offline_probability_sum"], 0.6, rtol=1e-6)


def test_the_gradient_raises_unlikely_tokens_most():
    def loss(log_probs):
        return policy_loss(log_probs, None, ADVANTAGES, MASK, GRPOConfig(), offline=OFFLINE)[0]

    gradient = np.asarray(jax.grad(loss)(LOG_PROBS))
    p = np.array([0.5, 0.1])
    np.testing.assert_allclose(gradient[0, 0, :2], -1.5 * p * 0.1 / (p + 0.1) ** 2 / 2, rtol=1e-5)
    assert gradient[0, 0, 2] == 0
    np.testing.assert_allclose(gradient[0, 1], 0.5 / 3, rtol=1e-5)


def test_a_sampler_is_compared_on_its_own_tokens_only():
    sampler = np.zeros_like(LOG_PROBS)
    _, _, extras = policy_loss(
        LOG_PROBS, None, ADVANTAGES, MASK, GRPOConfig(), sampler_log_probs=sampler, offline=OFFLINE
    )
    np.testing.assert_allclose(extras["sampler_gap_sum"], -LOG_PROBS[0, 1].sum(), rtol=1e-6)


def test_without_any_nothing_changes():
    old = LOG_PROBS + 0.1
    plain = policy_loss(LOG_PROBS, old, ADVANTAGES, MASK, GRPOConfig())
    none = policy_loss(LOG_PROBS, old, ADVANTAGES, MASK, GRPOConfig(), offline=np.zeros_like(OFFLINE))
    np.testing.assert_array_equal(plain[0], none[0])
    assert all(none[2][name] == value for name, value in plain[2].items())


def test_a_shape_of_nothing_is_refused():
    with pytest.raises(ConfigError, match="grpo.offline_shape=0 is not allowed"):
        GRPOConfig(offline_shape=0)
