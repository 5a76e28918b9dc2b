"""VISD's token weights: the vectors and invariants of the method, and how they meet GRPO's loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from jvlmm.objectives.grpo import GRPOConfig, policy_loss
from jvlmm.objectives.visd import (
    VISD_PROFILES,
    VISDConfig,
    evidence_gap,
    gap_over_best,
    modulated,
    token_weights,
    weight_sums,
)

TEACHER = np.array([2, 1, 0, -1, -2], np.float32)
STUDENT = np.array([1, 1.5, 0.5, -0.5, 0], np.float32)
RELEASE = VISDConfig()


def gap(teacher, student, token, top_k):
    best, ids = jax.lax.top_k(jnp.asarray(teacher), min(top_k, len(teacher)))
    return gap_over_best(ids, best, student[ids], jnp.asarray(token), teacher[token], student[token])


@pytest.mark.parametrize(
    ("top_k", "token", "expected"),
    [
        (2, 0, 0.660815),
        (2, 1, -0.839185),
        (2, 3, -0.794055),
        (2, 4, -2.222432),
        (5, 0, 0.895187),
        (5, 1, -0.604813),
        (5, 3, -0.604813),
        (5, 4, -2.104813),
    ],
)
def test_the_gap_is_that_of_the_reference_vectors(top_k, token, expected):
    np.testing.assert_allclose(gap(TEACHER, STUDENT, token, top_k), expected, atol=1e-6)


def test_weights_and_advantages_of_the_reference_vectors():
    gaps = jnp.full((1, 2, 1), gap(TEACHER, STUDENT, 0, 2))
    advantages = jnp.array([[1.2, -0.7]])
    np.testing.assert_allclose(jnp.exp(jnp.sign(advantages)[..., None] * gaps).ravel(), [1.936370, 0.516430], rtol=1e-5)
    weights = token_weights(gaps, advantages, RELEASE)
    np.testing.assert_allclose(weights.ravel(), [1.2, 0.8], rtol=1e-6)
    mask = np.ones((1, 2, 1), bool)
    np.testing.assert_allclose(modulated(advantages, weights, 0.5, RELEASE, mask).ravel(), [1.32, -0.63], rtol=1e-6)


def test_the_schedule():
    found = [RELEASE.strength_at(step) for step in (1, 2, 300, 600, 601, 10_000)]
    np.testing.assert_allclose(found, [0.5, 0.499167, 0.250833, 0.000833, 0, 0], atol=1e-6)


logits = arrays(np.float32, 7, elements=st.floats(-8, 8, width=32))


@settings(max_examples=60, deadline=None)
@given(logits, logits, st.integers(0, 6), st.integers(7, 9))
def test_over_all_words_the_gap_is_that_of_probabilities(teacher, student, token, top_k):
    whole = [jax.nn.log_softmax(z)[token] for z in (teacher, student)]
    np.testing.assert_allclose(gap(teacher, student, token, top_k), whole[0] - whole[1], atol=2e-5)


@settings(max_examples=60, deadline=None)
@given(
    arrays(np.float32, (2, 3, 4), elements=st.floats(-20, 20, width=32)),
    arrays(np.float32, (2, 3), elements=st.sampled_from([0.0, 1e-30, -1e-30]) | st.floats(-3, 3, width=16)),
    st.floats(0, 1),
)
def test_a_teacher_never_turns_an_update_around(gaps, advantages, strength):
    weights = token_weights(gaps, advantages, RELEASE)
    found = modulated(advantages, weights, strength, RELEASE, np.ones(gaps.shape, bool))
    np.testing.assert_array_equal(np.sign(found), np.broadcast_to(np.sign(advantages)[..., None], gaps.shape))
    bound = np.abs(advantages)[..., None] * (1 + strength * RELEASE.clip)
    assert (np.abs(found) <= bound * (1 + 1e-5)).all()


def losses(advantages):
    rng = np.random.default_rng(0)
    log_probs = rng.normal(-1, 0.3, (2, 3, 4)).astype(np.float32)
    mask = np.arange(4) < np.array([[4, 2, 3], [1, 4, 4]])[..., None]
    return policy_loss(log_probs, None, advantages, mask, GRPOConfig())[0], mask


@pytest.mark.parametrize("case", ["annealed", "no gap"])
def test_without_strength_or_gap_it_is_grpo_to_the_bit(case):
    rng = np.random.default_rng(1)
    advantages = rng.normal(size=(2, 3)).astype(np.float32)
    gaps = rng.normal(size=(2, 3, 4)).astype(np.float32) * (case == "annealed")
    strength = 0.0 if case == "annealed" else 0.5
    expected, mask = losses(advantages)
    weighted = modulated(advantages, token_weights(gaps, advantages, RELEASE), strength, RELEASE, mask)
    assert losses(weighted)[0] == expected


def test_no_gradient_goes_to_teacher_or_student():
    def total(teacher, student):
        best, ids = jax.lax.top_k(teacher, 2)
        over_best = gap_over_best(ids, best, student[ids], jnp.asarray(3), teacher[3], student[3])
        mixed = evidence_gap(over_best, teacher[3], student[3], VISDConfig(sampled=0.5))
        return token_weights(jnp.full((1, 1, 1), mixed), jnp.ones((1, 1)), VISDConfig(clip=0.9)).sum()

    for gradient in jax.grad(total, (0, 1))(jnp.asarray(TEACHER), jnp.asarray(STUDENT)):
        np.testing.assert_array_equal(gradient, 0)


def test_shares_of_the_two_gaps():
    assert evidence_gap(jnp.float32(1.0), jnp.float32(-1.0), jnp.float32(-4.0), VISDConfig(sampled=0.25)) == 1.5
    assert evidence_gap(jnp.float32(1.0), jnp.float32(-1.0), jnp.float32(-4.0), VISD_PROFILES["rlsd"]) == 3.0


def test_positive_rollouts_may_be_left_alone():
    config = VISDConfig(negative_only=True)
    advantages, gaps = np.array([[1.0, -1.0]], np.float32), np.ones((1, 2, 2), np.float32)
    mask = np.array([[[True, True], [True, False]]])
    found = modulated(advantages, token_weights(gaps, advantages, config), 0.5, config, mask)
    np.testing.assert_allclose(found, [[[1, 1], [-0.9, -1]]], rtol=1e-6)


def test_sums_are_of_tokens_that_have_an_advantage():
    advantages = np.array([[1.0, 0.0]], np.float32)
    gaps = np.array([[[0.1, -1.0], [5.0, 5.0]]], np.float32)
    mask, among = np.ones((1, 2, 2), bool), np.array([[[True, False], [True, True]]])
    sums = weight_sums(gaps, token_weights(gaps, advantages, RELEASE), advantages, among, mask, RELEASE)
    assert sums["visd/tokens"] == 2 and sums["visd/clipped"] == 1 and sums["visd/among_best"] == 1
    np.testing.assert_allclose(sums["visd/gap"], -0.9, rtol=1e-6)
    np.testing.assert_allclose(sums["visd/weight"], np.exp(0.1) + 0.8, rtol=1e-6)


def test_sums_of_thirds_are_of_the_tokens_that_each_rollout_has():
    mask = np.arange(6) < np.array([6, 3])[:, None]
    gaps = np.where(mask, np.arange(6, dtype=np.float32), 9)[None]
    ones = np.ones((1, 2), np.float32)
    sums = weight_sums(gaps, token_weights(gaps, ones, RELEASE), ones, mask[None], mask[None], RELEASE)
    assert [sums[f"visd/tokens/{third}"] for third in ("first", "middle", "last")] == [3, 3, 3]
    assert [sums[f"visd/gap/{third}"] for third in ("first", "middle", "last")] == [0 + 1 + 0, 2 + 3 + 1, 4 + 5 + 2]
