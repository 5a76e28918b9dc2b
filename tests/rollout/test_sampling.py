"""Logits processors keep what they promise, and a row's draw is its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jvlmm.errors import ConfigError
from jvlmm.models.config import ModelConfig, TextConfig
from jvlmm.rollout import sampling
from jvlmm.rollout.sampling import SamplingOptions, row_keys

SAMPLE = jax.jit(sampling.sample, static_argnames="options")
LOGITS = hnp.arrays(np.float32, (3, 12), elements=st.integers(-80, 80).map(lambda x: x / 4))


def kept(logits):
    return np.asarray(logits) > sampling.MASKED / 2


@pytest.mark.parametrize(
    "bad",
    [
        {"max_tokens": 0},
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"temperature": 1.0, "top_p": 0.0},
        {"temperature": 1.0, "top_k": -1},
        {"temperature": 1.0, "min_p": 1.5},
        {"stop": ("",)},
        {"seed": -1},
        {"seed": 2**32},
        {"repetition_penalty": 0.0},
        {"presence_penalty": 2.5},
        {"frequency_penalty": float("nan")},
        {"top_p": 0.9},  # without effect in greedy decoding
    ],
)
def test_impossible_options_are_refused_by_name(bad):
    with pytest.raises(ConfigError, match=list(bad)[-1]):
        SamplingOptions(**bad)


@given(LOGITS, st.integers(1, 20))
@settings(max_examples=30, deadline=None)
def test_top_k_keeps_the_k_largest(logits, k):
    keep = kept(sampling.keep_top_k(logits, k))
    for row, mask in zip(logits, keep, strict=True):
        np.testing.assert_array_equal(mask, row >= np.sort(row)[-min(k, 12)])


@given(LOGITS, st.floats(0.01, 0.99))
@settings(max_examples=30, deadline=None)
def test_top_p_keeps_the_smallest_set_that_reaches_the_mass(logits, p):
    keep = kept(sampling.keep_top_p(logits, p))
    probabilities = np.asarray(jax.nn.softmax(logits))
    assert keep.any(axis=-1).all()
    for row, mask in zip(probabilities, keep, strict=True):
        assert row[mask].sum() >= p - 1e-5
        least = row[mask].min()
        assert row[row > least].sum() < p + 1e-5, "one token fewer would have been enough"
        assert not (~mask & (row > least)).any()


@given(LOGITS, st.floats(0.01, 1))
@settings(max_examples=30, deadline=None)
def test_min_p_keeps_what_is_probable_relative_to_the_best(logits, p):
    keep = kept(sampling.keep_min_p(logits, p))
    ratio = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    clear = np.abs(np.log(ratio / p)) > 1e-4
    np.testing.assert_array_equal(keep[clear], (ratio >= p)[clear])
    assert keep[np.arange(3), logits.argmax(-1)].all()


def test_banned_tokens_are_placeholders_and_the_tail():
    config = ModelConfig(text=TextConfig(vocab_size=151_700))
    tokens = config.tokens
    banned = sampling.banned_tokens(config, 151_665, extra=(151_654,))
    assert banned[[tokens.image, tokens.video, tokens.vision_start, tokens.vision_end, 151_654]].all()
    assert banned[151_665:].all()
    assert banned.sum() == 5 + 35
    assert not banned[list(tokens.eos)].any()


def draw(logits, options, count, banned=None, seed=0):
    keys = row_keys(seed, range(count))
    banned = np.zeros(logits.shape[-1], bool) if banned is None else banned
    return SAMPLE(keys, jnp.broadcast_to(logits, (count, logits.shape[-1])), banned, options)


def test_a_banned_token_is_never_drawn_even_where_it_is_the_best():
    logits = jnp.array([9.0, 1.0, 0.5, 8.0])
    banned = np.array([True, False, False, True])
    for options in (SamplingOptions(), SamplingOptions(temperature=5.0), SamplingOptions(temperature=1.0, top_k=3)):
        tokens, log_probs = draw(logits, options, 300, banned)
        assert set(np.unique(tokens)) <= {1, 2}
        expected = jax.nn.log_softmax(logits / (options.temperature or 1))[tokens]
        np.testing.assert_allclose(log_probs, expected, atol=1e-6)  # among all tokens


def test_draws_follow_the_tempered_distribution():
    logits = jnp.array([0.0, 1.0, 2.0])
    tokens, _ = draw(logits, SamplingOptions(temperature=2.0), 20_000)
    frequencies = np.bincount(tokens, minlength=3) / 20_000
    np.testing.assert_allclose(frequencies, jax.nn.softmax(logits / 2), atol=0.015)


@given(LOGITS)
@settings(max_examples=20, deadline=None)
def test_a_temperature_towards_zero_is_greedy(logits):
    best = np.sort(logits, axis=-1)
    clear = best[:, -1] - best[:, -2] > 1e-3
    banned = np.zeros(12, bool)
    keys = row_keys(0, range(3))
    cold, _ = SAMPLE(keys, logits, banned, SamplingOptions(temperature=1e-5))
    greedy, _ = SAMPLE(keys, logits, banned, SamplingOptions())
    np.testing.assert_array_equal(np.asarray(cold)[clear], np.asarray(greedy)[clear])
    np.testing.assert_array_equal(greedy, logits.argmax(-1))


def test_a_rows_draw_does_not_depend_on_its_batch():
    logits = jax.random.normal(jax.random.key(1), (5, 50))
    options = SamplingOptions(temperature=1.0, top_p=0.9)
    banned = np.zeros(50, bool)
    together, _ = SAMPLE(row_keys(7, range(5)), logits, banned, options)
    order = np.array([3, 0])
    apart, _ = SAMPLE(row_keys(7, order), logits[order], banned, options)
    np.testing.assert_array_equal(together[order], apart)
    other_seed, _ = SAMPLE(row_keys(8, range(5)), logits, banned, options)
    assert (np.asarray(together) != np.asarray(other_seed)).any()
