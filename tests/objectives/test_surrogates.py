"""Each surrogate against worked numbers, and what clipping must do for any ratio."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from jvlmm.objectives.surrogates import (
    cispo_surrogate,
    clipped_surrogate,
    importance_weights,
    regression_surrogate,
    sequence_ratio,
    token_ratio,
)

numbers = st.floats(-3, 3, width=16)
ratios = st.floats(0.0625, 16, width=16)


def test_clipped_by_hand():
    ratio, advantages = jnp.array([1.5, 1.5, 0.5, 0.5, 1.1, 6.0]), jnp.array([1.0, -1.0, 1.0, -1.0, 2.0, -1.0])
    # 1.2 · 1 | 1.5 · −1 | 0.5 · 1 | 0.8 · −1 | 1.1 · 2 | 6 · −1, at most 3 in the second line
    np.testing.assert_allclose(clipped_surrogate(ratio, advantages, 0.2, 0.2), [-1.2, 1.5, -0.5, 0.8, -2.2, 6])
    np.testing.assert_allclose(clipped_surrogate(ratio, advantages, 0.2, 0.28, 3), [-1.28, 1.5, -0.5, 0.8, -2.2, 3])


@settings(deadline=None)  # the first examples compile
@given(ratios, numbers)
def test_clipped_is_pessimistic_and_still_where_it_gained_enough(ratio, advantage):
    loss, gradient = jax.value_and_grad(clipped_surrogate)(ratio, advantage, 0.2, 0.28)
    assert loss >= -ratio * advantage - 1e-6
    gained = (advantage > 0 and ratio > 1.28) or (advantage < 0 and ratio < 0.8)
    np.testing.assert_allclose(gradient, 0.0 if gained else -advantage, atol=1e-6)


@settings(deadline=None)  # the first examples compile
@given(numbers, ratios)
def test_cispo_keeps_every_gradient_and_bounds_it(advantage, ratio):
    gradient = jax.grad(lambda x: cispo_surrogate(x, token_ratio(x, x - jnp.log(ratio)), advantage, 5.0))(-1.0)
    np.testing.assert_allclose(gradient, -min(ratio, 5.0) * advantage, rtol=1e-4)


def test_sequence_ratio_is_the_geometric_mean_with_a_gradient_at_each_token():
    old, mask = jnp.zeros((1, 1, 3)), jnp.array([[[True, True, False]]])
    new = jnp.log(jnp.array([[[2.0, 8.0, 1.0]]]))
    np.testing.assert_allclose(sequence_ratio(new, old, mask)[0, 0, :2], [4, 4], rtol=1e-6)  # √(2 · 8)
    # of the mean over the two tokens: s / 2 each
    gradient = jax.grad(lambda x: sequence_ratio(x, old, mask)[0, 0, :2].mean())(new)
    np.testing.assert_allclose(gradient, [[[2, 2, 0]]], rtol=1e-6)


def test_ratios_stay_finite():
    assert jnp.isfinite(token_ratio(jnp.array([0.0, -1e4]), jnp.array([-1e4, 0.0]))).all()


def test_regression_by_hand():
    # summed log-ratios 0.3 and −0.1: mean 0.1, std (0.04 + 0.04) ** 0.5 = 0.2828427, normalised ±0.2 / 0.2829427
    log_probs, mask = jnp.array([[[0.1, 0.2], [-0.1, 0.0]]]), jnp.array([[[True, True], [True, False]]])
    losses = regression_surrogate(log_probs, jnp.zeros((1, 2, 2)), jnp.array([[1.0, -1.0]]), mask)
    np.testing.assert_allclose(losses, [[(1 - 0.7068569) ** 2] * 2], rtol=1e-5)


def test_regression_starts_at_the_advantages_with_a_finite_gradient():
    mask, log_probs = jnp.ones((1, 2, 3), bool), -jnp.ones((1, 2, 3))

    def loss(x):
        return regression_surrogate(x, log_probs, jnp.array([[1.0, -1.0]]), mask).sum()

    value, gradient = jax.value_and_grad(loss)(log_probs)
    assert value == 2
    # d/dρ_i of Σ (A_j − (ρ_j − mean ρ) / 1e-4)² at ρ = 0: −2 (A_i − mean A) / 1e-4
    np.testing.assert_allclose(gradient, jnp.broadcast_to(jnp.array([[[-2e4], [2e4]]]), (1, 2, 3)), rtol=1e-5)


def test_regression_is_least_where_the_log_ratios_follow_the_advantages():
    mask, advantages = jnp.ones((1, 3, 1), bool), jnp.array([[1.0, 0.0, -1.0]])

    def loss(ratios):
        return regression_surrogate(jnp.array(ratios).reshape(1, 3, 1), jnp.zeros((1, 3, 1)), advantages, mask).sum()

    assert loss([2.0, 0.0, -2.0]) < 1e-6 < loss([2.0, 1.0, -2.0]) < loss([-2.0, 0.0, 2.0])


def test_importance_weights_by_hand():
    old, sampler = jnp.log(jnp.array([0.5, 0.5, 0.9])), jnp.log(jnp.array([0.25, 1.0, 0.1]))
    np.testing.assert_allclose(importance_weights(old, sampler, 2.0), [2, 0.5, 2], rtol=1e-6)
    assert not jax.grad(lambda x: importance_weights(x, sampler, 2.0).sum())(old).any()
