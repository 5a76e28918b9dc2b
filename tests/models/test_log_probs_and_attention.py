"""Tiled computations equal the plain ones, gradients included."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvlmm.models import attention, log_probs
from jvlmm.models.log_probs import logits_at, tiled_best_words, tiled_log_probs
from jvlmm.models.vision import take_rows


def naive_log_probs(hidden, head, targets):
    log_probs = jax.nn.log_softmax(hidden @ head.T, axis=-1)
    return jnp.take_along_axis(log_probs, targets[..., None], axis=-1)[..., 0]


@pytest.mark.parametrize(("words", "temperature"), [(99, 1.0), (5, 0.6)])
@pytest.mark.parametrize(("batch", "length", "tile"), [(2, 9, 4), (3, 8, 6), (1, 7, 1), (4, 2, 3), (2, 5, 99)])
def test_tiled_log_probs_equal_the_naive_ones(monkeypatch, batch, length, tile, words, temperature):
    monkeypatch.setattr(log_probs, "WORDS", words)  # of the vocabulary in one tile
    rng = np.random.default_rng(batch * 100 + length)
    hidden, head = rng.normal(size=(batch, length, 6)), rng.normal(size=(18, 6))
    hidden, head, weights = (jnp.asarray(x, jnp.float32) for x in (hidden, head, rng.normal(size=(batch, length))))
    targets = jnp.asarray(rng.integers(0, 18, (batch, length)), jnp.int32)
    mask = jnp.asarray(rng.random((batch, length)) < 0.7)
    of_tiles = partial(tiled_log_probs, temperature=temperature)
    tiled = lambda h, w: jnp.sum(weights * of_tiles(h, w, targets, tile, mask))  # noqa: E731
    naive = lambda h, w: jnp.sum(weights * mask * naive_log_probs(h / temperature, w, targets))  # noqa: E731
    tiled, naive = (jax.jit(jax.value_and_grad(f, (0, 1))) for f in (tiled, naive))
    for ours, expected in zip(jax.tree.leaves(tiled(hidden, head)), jax.tree.leaves(naive(hidden, head)), strict=True):
        np.testing.assert_allclose(ours, expected, atol=2e-5)


@pytest.mark.parametrize(("words", "top_k"), [(99, 3), (5, 4), (5, 40)])
def test_the_best_words_are_those_of_all_logits(monkeypatch, words, top_k):
    monkeypatch.setattr(log_probs, "WORDS", words)
    rng = np.random.default_rng(top_k)
    hidden, head = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((2, 9, 6), (18, 6)))
    targets = jnp.asarray(rng.integers(0, 18, (2, 9)), jnp.int32)
    mask = jnp.arange(9) < jnp.array([[9], [5]])
    expected = hidden @ head.T / 0.6
    best, ids = jax.lax.top_k(expected, min(top_k, 18))
    own = jnp.take_along_axis(expected, targets[..., None], axis=-1)[..., 0]
    found = jax.jit(lambda: tiled_best_words(hidden, head, targets, 4, top_k, mask, temperature=0.6))()
    for ours, wanted in zip(found, (own - jax.nn.logsumexp(expected, -1), own, ids, best), strict=True):
        shown = mask.reshape(*mask.shape, *(1,) * (wanted.ndim - 2))
        np.testing.assert_allclose(ours, jnp.where(shown, wanted, 0), atol=2e-5)
    np.testing.assert_allclose(logits_at(hidden, head, ids, 4, 0.6), best, atol=2e-5)


def test_no_array_of_all_logits_exists_in_the_training_program():
    batch, length, width, vocab = 2, 64, 8, 1000
    hidden, head = jnp.ones((batch, length, width)), jnp.ones((vocab, width))
    targets = jnp.zeros((batch, length), jnp.int32)
    gradients = jax.grad(lambda h, w: tiled_log_probs(h, w, targets, 16).sum(), (0, 1))
    compiled = jax.jit(gradients).lower(hidden, head).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < batch * length * vocab * 4 / 2


@pytest.mark.parametrize("causal", [False, True])
def test_attention_in_tiles_of_queries_equals_dense_attention(monkeypatch, causal):
    rng = np.random.default_rng(0)
    query = rng.normal(size=(2, 4, 13, 8)).astype(np.float32)
    key, value = rng.normal(size=(2, 2, 2, 13, 8)).astype(np.float32)
    segments = np.sort(rng.integers(0, 3, (2, 13)), axis=1).astype(np.int32)

    def run(query, key, value):
        return jnp.sum(jnp.sin(attention.attend(query, key, value, segments, segments, causal)))

    dense = jax.jit(jax.value_and_grad(run, (0, 1, 2)))(query, key, value)
    monkeypatch.setattr(attention, "_DENSE_SCORES", 13 * 5)
    tiled = jax.jit(jax.value_and_grad(lambda *x: run(*x), (0, 1, 2)))(query, key, value)
    for ours, expected in zip(jax.tree.leaves(tiled), jax.tree.leaves(dense), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


def test_grouped_heads_share_consecutive_keys():
    rng = np.random.default_rng(1)
    query = rng.normal(size=(1, 6, 5, 4)).astype(np.float32)
    key, value = rng.normal(size=(2, 1, 2, 7, 4)).astype(np.float32)
    repeated = [np.repeat(x, 3, axis=1) for x in (key, value)]
    np.testing.assert_allclose(attention.attend(query, key, value), attention.attend(query, *repeated), atol=1e-6)


def test_take_rows_has_the_gradient_of_a_gather():
    index = np.array([3, -1, 0, 2, -1], np.int32)
    inverse = np.array([2, -1, 3, 0], np.int32)  # row 1 is taken nowhere
    x = np.random.default_rng(2).normal(size=(4, 3)).astype(np.float32)
    plain = lambda x: jnp.where((index >= 0)[:, None], x[index], 0)  # noqa: E731
    np.testing.assert_array_equal(take_rows(x, index, inverse), plain(x))
    ours, expected = (
        jax.grad(lambda x, f=f: jnp.sum(f(x) ** 3))(x) for f in (lambda x: take_rows(x, index, inverse), plain)
    )
    np.testing.assert_allclose(ours, expected, atol=1e-6)
