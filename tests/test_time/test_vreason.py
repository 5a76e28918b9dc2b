"""V-Reason's mathematics on hand-made arrays: closed forms against autodiff, invariants of the paper, bad options."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jvlmm.config import apply_overrides
from jvlmm.errors import ConfigError
from jvlmm.test_time import vreason
from jvlmm.test_time.vreason import LiteOptions, VReasonOptions

HEADS, GROUP, ROWS, DIM, WORDS = 2, 3, 5, 4, 7


def draw(seed, *shape, scale=1.0):
    return jnp.asarray(np.random.default_rng(seed).normal(0, scale, shape), jnp.float32)


def toy(seed):
    """(values, delta, weights, scores: outputs [H, d] to logits [V]) of one question with a padded last row."""
    values = draw(seed, HEADS, ROWS, DIM).at[:, -1].set(0)
    delta = draw(seed + 1, HEADS, ROWS, DIM, scale=0.3).at[:, -1].set(0)
    weights = jax.nn.softmax(draw(seed + 2, HEADS * GROUP, ROWS)).at[:, -1].set(0)
    matrix, base = draw(seed + 3, HEADS * GROUP * DIM, WORDS), draw(seed + 4, HEADS * GROUP, DIM)

    def scores(output):
        return jnp.tanh(base + output).ravel() @ matrix

    return values, delta, weights, scores


def loss_of(delta, values, weights, scores, sign):
    """The autodiff twin: everything from ΔV to the loss."""
    shift = vreason.preserved(values, delta) - values
    plain = jnp.einsum("krn,knd->krd", weights.reshape(HEADS, GROUP, ROWS), values).reshape(-1, DIM)
    return vreason.switch_loss(scores(plain + vreason.shift_of_output(weights, shift)), sign)


def closed_gradient(delta, values, weights, scores, sign):
    new = vreason.preserved(values, delta)
    logits, pull = jax.vjp(scores, vreason.shift_of_output(weights, new))
    return vreason.gradient(values, delta, weights, pull(vreason.switch_loss_gradient(logits, sign))[0])


@pytest.mark.parametrize("sign", [1.0, -1.0])
@given(seed=st.integers(0, 2**16))
@settings(max_examples=15, deadline=None)
def test_the_closed_form_is_the_gradient_and_is_orthogonal_to_what_it_moves(sign, seed):
    values, delta, weights, scores = toy(seed)
    arguments = values, weights, scores, jnp.float32(sign)
    found, expected = closed_gradient(delta, *arguments), jax.grad(loss_of)(delta, *arguments)
    near = 1e-5 * float(jnp.abs(expected).max()) + 1e-6  # near equal chances log p + H is left of larger numbers
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=near)
    along = jnp.sum(found * (values + delta), axis=-1)
    np.testing.assert_allclose(along, 0, atol=near)
    assert bool(jnp.isfinite(expected).all()) and not found[:, -1].any()


@given(seed=st.integers(0, 2**16), scale=st.sampled_from([1e-3, 1.0, 1e3]))
@settings(max_examples=15, deadline=None)
def test_norms_are_preserved(seed, scale):
    values, delta, *_ = toy(seed)
    new = vreason.preserved(values, delta * scale)
    np.testing.assert_allclose(jnp.linalg.norm(new, axis=-1), jnp.linalg.norm(values, axis=-1), rtol=1e-5)
    np.testing.assert_array_equal(vreason.preserved(values, jnp.zeros_like(delta)), values)
    assert not vreason.preserved(values, -values).any()


@pytest.mark.parametrize(("sign", "direction"), [(-1.0, -1), (1.0, 1)])
def test_a_small_step_moves_the_entropy_where_the_sign_says(sign, direction):
    for seed in range(5):
        values, delta, weights, scores = toy(seed)
        sign_ = jnp.float32(sign)

        def entropy(delta, values=values, weights=weights, scores=scores):
            return math.log(WORDS) - loss_of(delta, values, weights, scores, jnp.float32(1))

        stepped = delta - 1e-3 * jax.grad(loss_of)(delta, values, weights, scores, sign_)
        assert direction * (entropy(stepped) - entropy(delta)) > 0


def test_the_gradient_of_the_loss_on_logits_is_autodiff_s():
    logits = draw(0, 3, WORDS, scale=3)
    signs = jnp.array([1.0, -1.0, 1.0])
    expected = jax.vmap(jax.grad(vreason.switch_loss))(logits, signs)
    np.testing.assert_allclose(vreason.switch_loss_gradient(logits, signs), expected, atol=1e-6)
    uniform = vreason.entropy_of(jnp.zeros(WORDS))
    np.testing.assert_allclose(uniform, math.log(WORDS), rtol=1e-6)


def signs_of(entropies, beta, mode="switch"):
    switch = vreason.first_switch(jnp.float32(entropies[0]))
    signs = [float(vreason.sign_of(switch, mode, jax.random.key(0)))]
    emas = [float(switch.ema)]
    for entropy in entropies[1:]:
        switch = vreason.advanced(switch, jnp.float32(entropy), beta)
        signs.append(float(vreason.sign_of(switch, mode, jax.random.key(0))))
        emas.append(float(switch.ema))
    return signs, emas


def test_signs_follow_the_average_s_maximum():
    signs, emas = signs_of([1.0, 3.0, 2.0, 0.0, 4.0, 0.0], beta=0.5)
    np.testing.assert_allclose(emas, [1, 2, 2, 1, 2.5, 1.25])
    assert signs == [1, 1, 1, -1, 1, -1]


@given(st.lists(st.floats(0, 10, width=32), min_size=2, max_size=40), st.sampled_from([0.0, 0.5, 0.9]))
@settings(max_examples=30, deadline=None)
def test_after_the_last_maximum_every_sign_is_down(entropies, beta):
    signs, emas = signs_of(entropies, beta)
    last = max(np.flatnonzero(np.array(emas) == max(emas)))
    assert all(sign == -1 for sign in signs[last + 1 :]) and signs[last] == 1


def test_the_other_modes():
    entropies = [1.0, 2.0, 0.5]
    assert signs_of(entropies, 0.5, "always_up")[0] == [1, 1, 1]
    assert signs_of(entropies, 0.5, "always_down")[0] == [-1, -1, -1]
    assert signs_of(entropies, 0.5, "off")[0] == [0, 0, 0]
    switch = vreason.first_switch(jnp.float32(1))
    random = {float(vreason.sign_of(switch, "random", jax.random.key(n))) for n in range(20)}
    assert random == {-1, 1}


def test_a_step_that_overflows_is_not_taken():
    delta, optimizer = jnp.ones((1, 1, 2)), optax.sgd(1e30)
    state = optimizer.init(delta)
    yes, no = jnp.array(True), jnp.array(False)
    kept, _, failed = vreason.descended(optimizer, jnp.full_like(delta, 1e20), state, delta, yes)
    np.testing.assert_array_equal(kept, delta)
    assert bool(failed)
    moved, _, failed = vreason.descended(optimizer, jnp.full_like(delta, 1e-30), state, delta, yes)
    np.testing.assert_allclose(moved, 0, atol=1e-5)
    assert not bool(failed)
    kept, _, failed = vreason.descended(optimizer, jnp.full_like(delta, 1e-30), state, delta, no)
    np.testing.assert_array_equal(kept, delta)
    assert not bool(failed)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("k=0", "k=0 is not allowed; give an integer of at least 1"),
        ("lr=0", "lr=0.0 is not allowed; give a positive number"),
        ("lr=inf", "lr=inf is not allowed"),
        ("beta=1", "beta=1.0 is not allowed"),
        ("inner_steps=0", "inner_steps=0 is not allowed"),
        ("min_entropy=-1", "min_entropy=-1.0 is not allowed"),
        ("lite.ratio=1", "lite.ratio=1.0 is not allowed; give a number in \\(0, 1\\)"),
        ("lite.ratio=0", "lite.ratio=0.0 is not allowed"),
        ("mode=sideways", "sideways"),
        ("lite.rank_by=taste", "taste"),
    ],
)
def test_bad_options_are_refused(override, message):
    with pytest.raises(ConfigError, match=message):
        apply_overrides(VReasonOptions(lite=LiteOptions()), [override])
