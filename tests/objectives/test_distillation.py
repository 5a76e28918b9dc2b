"""The divergence of a student from its teacher: definitions, limits, what has a gradient and what is capped."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from jvlmm.errors import ConfigError
from jvlmm.objectives.distillation import (
    DISTILLATION_PROFILES,
    LEAST_REST,
    DistillationConfig,
    distillation_loss,
    divergence,
    with_rest,
)

T = np.log(np.array([0.7, 0.2, 0.1], np.float32))
S = np.log(np.array([0.4, 0.4, 0.2], np.float32))
logits = arrays(np.float32, 6, elements=st.floats(-6, 6, width=32))


@pytest.mark.parametrize(
    ("mix", "expected"),
    [
        (0.0, 0.7 * np.log(0.7 / 0.4) + 0.2 * np.log(0.2 / 0.4) + 0.1 * np.log(0.1 / 0.2)),
        (1.0, 0.4 * np.log(0.4 / 0.7) + 0.4 * np.log(0.4 / 0.2) + 0.2 * np.log(0.2 / 0.1)),
        # M = .25 T + .75 S = (.475, .35, .175)
        (
            0.25,
            0.25 * (0.7 * np.log(0.7 / 0.475) + 0.2 * np.log(0.2 / 0.35) + 0.1 * np.log(0.1 / 0.175))
            + 0.75 * (0.4 * np.log(0.4 / 0.475) + 0.4 * np.log(0.4 / 0.35) + 0.2 * np.log(0.2 / 0.175)),
        ),
    ],
)
def test_the_divergence_by_hand(mix, expected):
    np.testing.assert_allclose(divergence(T, S, DistillationConfig(mix=mix)), expected, rtol=1e-5)


@settings(max_examples=60, deadline=None)
@given(logits, logits, st.sampled_from([0.0, 0.1, 0.5, 1.0]))
def test_it_is_0_between_equals_and_never_below(teacher, student, mix):
    config = DistillationConfig(mix=mix)
    teacher, student = (jax.nn.log_softmax(z) for z in (teacher, student))
    assert divergence(teacher, student, config) > -1e-5
    assert abs(divergence(teacher, teacher, config)) < 1e-5


@settings(max_examples=40, deadline=None)
@given(logits, st.integers(1, 6))
def test_all_other_words_are_one_more(scores, top_k):
    log_probs = jax.nn.log_softmax(scores)
    found = with_rest(jnp.sort(log_probs)[::-1][:top_k])
    np.testing.assert_allclose(jnp.exp(found).sum(), 1, atol=1e-5)


def test_only_the_student_has_a_gradient_and_it_is_finite_where_nothing_is_left():
    def loss(teacher, student):
        of = [with_rest(jax.nn.log_softmax(z)) for z in (teacher, student)]
        return divergence(*of, DistillationConfig(top_k=4))

    of_teacher, of_student = jax.grad(loss, (0, 1))(jnp.array([1.0, 0, 2, 0]), jnp.array([0.0, 1, 0, 3]))
    np.testing.assert_array_equal(of_teacher, 0)
    assert np.isfinite(of_student).all() and np.abs(of_student).max() > 0.01


def over_all(teacher, student, config):
    """The divergence over the whole vocabulary, of logits."""
    return divergence(jax.nn.log_softmax(teacher), jax.nn.log_softmax(student), config)


def over_support(teacher, student, config):
    """The divergence over the top-K of the one whose support it is, and the rest, of logits."""
    known = {"teacher": teacher, "student": jax.lax.stop_gradient(student)}[config.support]
    ids = jax.lax.top_k(known, config.top_k)[1]
    of = [with_rest(jnp.take_along_axis(jax.nn.log_softmax(z), ids, axis=-1)) for z in (teacher, student)]
    return divergence(*of, config)


def spread(rng, sure: float, beyond: float, tokens: int = 60, held: int = 20) -> np.ndarray:
    """Logits of a distribution whose first token has `sure`, and those from `held` on `beyond` in all."""
    shares = rng.dirichlet(np.full(held - 1, 5.0)), rng.dirichlet(np.full(tokens - held, 5.0))
    probabilities = np.concatenate([[sure], (1 - sure - beyond) * shares[0], beyond * shares[1]])
    return np.log(np.maximum(probabilities, 1e-30)).astype(np.float32)


@pytest.mark.parametrize("support", ["teacher", "student"])
@pytest.mark.parametrize("mix", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(
    ("of_teacher", "of_student", "tolerance"),
    [
        ((0.6, 1e-9), (0.4, 1e-9), 1e-4),  # the support holds all
        ((1 - 1e-6, 1e-9), (0.9, 2e-6), 0.02),  # the teacher is sure, and the student holds a little beyond
        ((0.9999, 1e-8), (0.7, 1e-5), 0.02),
        ((0.99, 1e-5), (0.999, 3e-8), 0.02),  # the student is sure
    ],
)
def test_the_gradient_is_that_over_the_whole_vocabulary(of_teacher, of_student, tolerance, mix, support):
    rng = np.random.default_rng(0)
    teacher, student = spread(rng, *of_teacher), spread(rng, *of_student)
    config = DistillationConfig(top_k=20, mix=mix, support=support)
    expected = jax.grad(over_all, 1)(teacher, student, config)
    found = jax.grad(over_support, 1)(teacher, student, config)
    assert np.linalg.norm(found - expected) <= tolerance * np.linalg.norm(expected)


@pytest.mark.parametrize("beyond", [2e-6, 1e-5, 1e-4, 1e-3])
def test_a_sure_teacher_leads_no_further_than_over_the_whole_vocabulary(beyond):
    """What the student holds beyond a support that is the teacher's all counts once, not hundreds of times."""
    rng = np.random.default_rng(1)
    teacher, student = spread(rng, 1 - 1e-7, 0.0), spread(rng, 1 - 2 * beyond, beyond)
    for profile in ("sdpo_reverse", "sdpo"):
        config = replace(DISTILLATION_PROFILES[profile], top_k=20)
        lengths = [np.linalg.norm(jax.grad(f, 1)(teacher, student, config)) for f in (over_support, over_all)]
        assert lengths[0] <= 1.1 * lengths[1]


def test_the_rest_is_bounded_where_nothing_is_left():
    (rest,) = with_rest(jnp.log(jnp.array([0.25, 0.75])))[2:]
    np.testing.assert_allclose(rest, np.log(LEAST_REST), rtol=1e-4)
    np.testing.assert_allclose(jnp.exp(with_rest(jnp.log(jnp.array([0.25, 0.5])))[2]), 0.25, rtol=1e-5)
    over = with_rest(jnp.array([1e-6, -20.0]))  # as rounding leaves it
    assert np.isfinite(over).all()


def test_a_word_adds_at_most_its_cap():
    capped = divergence(T, S, replace(DISTILLATION_PROFILES["opsd"], word_cap=0.05))
    np.testing.assert_allclose(capped, 0.05 + 0.2 * np.log(0.5) + 0.1 * np.log(0.5), rtol=1e-5)


def test_tokens_weigh_as_likely_as_they_have_become_up_to_a_cap():
    mask = np.array([[[True, True, False]]])
    divergences, drawn = np.ones((1, 1, 3), np.float32), np.zeros((1, 1, 3), np.float32)
    now = np.log(np.array([[[0.5, 7.0, 9.0]]], np.float32))
    total, count = distillation_loss(divergences, now, drawn, mask, DistillationConfig(importance_cap=2.0))
    assert (total, count) == (2.5, 2)
    assert distillation_loss(divergences, now, drawn, mask, DistillationConfig())[0] == 2


@pytest.mark.parametrize(
    "wrong", [{"support": "both"}, {"top_k": 0}, {"mix": 1.5}, {"word_cap": 0.0}, {"importance_cap": -1.0}]
)
def test_impossible_options_are_refused(wrong):
    with pytest.raises(ConfigError, match=f"distillation.{next(iter(wrong))}="):
        DistillationConfig(**wrong)
