"""Completions that share one prompt attend as they would to a copy of their own, forward, backward and in decoding."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_model import CONFIG

from jvlmm.models import qwen2_5_vl, shared_prefix, splash
from jvlmm.models.attention import attend
from jvlmm.models.cache import GroupCache
from jvlmm.models.shared_prefix import SharedPrefix, attend_shared, causal_mask

SCANNED = replace(CONFIG, scan_layers=True)


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def valid_of(lengths, size):
    return np.arange(size) < np.array(lengths)[:, None]


def on_copies(query, prompt, own, prompt_valid, own_mask):
    """`attend_shared` in plain words: every completion has the prompt's keys in a row of its own."""
    batch, heads, group, length, dim = query.shape
    repeats = heads // prompt[0].shape[1]

    def keys(of_prompt, of_own):
        copies = jnp.repeat(of_prompt[:, :, None], group, axis=2)
        return jnp.repeat(jnp.concatenate([copies, of_own], axis=3), repeats, axis=1)

    key, value = map(keys, prompt, own)
    of_prompt = jnp.broadcast_to(prompt_valid[:, None, None], (batch, group, length, prompt_valid.shape[1]))
    of_own = jnp.broadcast_to(own_mask, (batch, group, length, own[0].shape[3]))
    mask = jnp.concatenate([of_prompt, of_own], axis=-1)[:, None]
    scores = jnp.where(mask, jnp.einsum("bhgcd,bhgtd->bhgct", query, key) / dim**0.5, -jnp.inf)
    return jnp.einsum("bhgct,bhgtd->bhgcd", jax.nn.softmax(scores, axis=-1), value)


@pytest.mark.parametrize("heads", [4, 2], ids=["grouped heads", "a key head for each"])
@pytest.mark.parametrize("max_scores", [None, 3 * (7 + 5), 1], ids=["at once", "tiles of three", "one by one"])
def test_attention_to_a_shared_prompt_is_that_to_copies_of_it(heads, max_scores):
    query = draw(2, heads, 3, 5, 8)
    prompt, own = tuple(draw(2, 2, 2, 7, 8, seed=1)), tuple(draw(2, 2, 2, 3, 5, 8, seed=2))
    masks = valid_of([7, 4], 7), causal_mask(5)
    weights = draw(*query.shape, seed=3)

    def results(attention):
        def loss(query, prompt, own):
            mixed = attention(query, prompt, own, *masks)
            return jnp.sum(mixed * weights), mixed

        gradients, mixed = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(query, prompt, own)
        return mixed, gradients

    found, expected = results(partial(attend_shared, max_scores=max_scores)), results(on_copies)
    jax.tree.map(partial(np.testing.assert_allclose, atol=2e-6), found, expected)
    assert not np.any(found[1][1][0][1, :, 4:]), "padding of a prompt has a gradient"


def test_a_query_that_may_attend_to_nothing_gives_zeros():
    query, prompt, own = draw(1, 2, 2, 3, 8), tuple(draw(2, 1, 2, 4, 8)), tuple(draw(2, 1, 2, 2, 3, 8))
    nothing = np.zeros((1, 4), bool), np.zeros((1, 1, 3, 3), bool)
    loss = lambda *x: attend_shared(*x, *nothing).sum()  # noqa: E731
    value, gradients = jax.value_and_grad(loss, (0, 1, 2))(query, prompt, own)
    assert value == 0 and not any(np.any(x) for x in jax.tree.leaves(gradients))


def test_scores_of_one_completion_at_a_time_bound_the_memory(monkeypatch):
    """What the limit is for: no array of the tiled path is larger than it, forward and backward."""
    limit, sizes = 4 * 24, []
    scores = shared_prefix._scores

    def watched(*arguments):
        found = scores(*arguments)
        sizes.append(sum(part.shape[-3] * part.shape[-2] * part.shape[-1] for part in found))
        return found

    monkeypatch.setattr(shared_prefix, "_scores", watched)
    query, prompt, own = draw(1, 2, 3, 8, 8), tuple(draw(2, 1, 2, 16, 8)), tuple(draw(2, 1, 2, 3, 8, 8))
    loss = lambda query: attend_shared(query, prompt, own, np.ones((1, 16), bool), causal_mask(8), limit).sum()  # noqa: E731
    jax.grad(loss)(query)
    assert sizes and max(sizes) <= limit


@pytest.mark.parametrize(
    ("prompt", "group", "completion"),
    [(512, 1, 512), (100, 3, 48), (300, 2, 130)],
    ids=["whole blocks", "within a block", "across blocks"],
)
def test_the_splash_kernel_masks_completions_from_one_another(prompt, group, completion):
    """As on a TPU, interpreted; the prompt and its completions are ragged."""
    prefix = SharedPrefix(prompt, group, completion)
    query = draw(1, 2, prefix.length, 64)
    key, value = draw(2, 1, 1, prefix.length, 64, seed=1)
    of_completions = valid_of([completion, completion // 2, 1][:group], completion)
    segments = np.append(valid_of([prompt - 17], prompt), of_completions)[None].astype(np.int32)
    weights = draw(1, prefix.length, 2, 64, seed=2) * segments[..., None, None]

    def results(attention):
        def loss(*inputs):
            mixed = attention(*inputs, segments, segments, causal=True, prefix=prefix)
            return jnp.sum(mixed * weights), mixed * (segments[..., None, None] > 0)

        return jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(query, key, value)

    gradients, mixed = results(partial(splash.attend, interpret=True))
    expected_gradients, expected = results(attend)
    np.testing.assert_allclose(mixed, expected, atol=2e-5)
    for name, a, b in zip(("query", "key", "value"), gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4, err_msg=name)


@pytest.fixture(scope="module")
def params():
    return qwen2_5_vl.init_params(CONFIG, jax.random.key(0))


def read(params, config, lengths, size):
    rng = np.random.default_rng(5)
    valid = valid_of(lengths, size)
    tokens = np.where(valid, rng.integers(0, 90, valid.shape), config.tokens.pad).astype(np.int32)
    positions = np.broadcast_to(np.arange(size, dtype=np.int32), (len(lengths), 3, size))
    inputs = tokens, positions, valid.astype(np.int32)
    _, kept = qwen2_5_vl.read_prompts(params, config, *inputs, None, None)
    return inputs, kept


@pytest.mark.parametrize("config", [CONFIG, SCANNED], ids=["unrolled", "scanned"])
@pytest.mark.parametrize("column", [0, 5], ids=["from the first column", "around the end"])
def test_decoding_over_a_group_cache_is_decoding_over_rows_of_their_own(params, config, column):
    """Two prompts, three completions of each, and six tokens in eight columns."""
    group, columns, steps, lengths = 3, 8, 6, (7, 4)
    params = qwen2_5_vl.stack_layers(params) if config.scan_layers else params
    inputs, (keys, values) = read(params, config, lengths, 7)
    own = jax.tree.map(lambda x: jnp.zeros((*x.shape[:-2], group, columns, x.shape[-1])), (keys, values))
    never = jnp.zeros((2, group, columns), bool)
    shared = GroupCache(keys, values, inputs[2] > 0, *own, never, jnp.int32(column))
    repeated = [np.repeat(x, group, axis=0) for x in inputs]
    _, apart = qwen2_5_vl.prefill(params, config, *repeated, None, None, cache_length=7 + steps)
    step = jax.jit(partial(qwen2_5_vl.decode_step, params, config))
    drawn = np.random.default_rng(6).integers(0, 90, (steps, 2 * group)).astype(np.int32)
    for number, tokens in enumerate(drawn):
        positions = np.broadcast_to(np.repeat(lengths, group)[:, None] + number, (2 * group, 3))
        ours, shared = step(tokens, positions, shared)
        expected, apart = step(tokens, positions, apart)
        np.testing.assert_allclose(ours, expected, atol=1e-5, err_msg=f"token {number}")
    assert int(shared.column) == (column + steps) % columns
    np.testing.assert_array_equal(np.flatnonzero(shared.valid[0, 0]), sorted((column + np.arange(steps)) % columns))
    jax.tree.map(np.testing.assert_array_equal, (shared.prompt_keys, shared.prompt_values), (keys, values))


def test_a_slot_that_begins_anew_does_not_see_what_was_there(params):
    """Its columns become invalid, and those of its neighbours stay."""
    inputs, (keys, values) = read(params, CONFIG, (5,), 5)
    own = jax.tree.map(lambda x: jnp.zeros((1, x.shape[1], 2, 8, x.shape[-1])), (keys, values))
    cache = GroupCache(keys, values, inputs[2] > 0, *own, jnp.zeros((1, 2, 8), bool), jnp.int32(0))
    step = jax.jit(partial(qwen2_5_vl.decode_step, params, CONFIG))
    at = lambda position: np.full((2, 3), position, np.int32)  # noqa: E731
    fresh, _ = step(np.array([3, 4], np.int32), at(5), cache)
    for number, token in enumerate((10, 11, 12)):
        _, cache = step(np.array([token, token + 20], np.int32), at(5 + number), cache)
    cache = cache.replace(valid=cache.valid.at[:, 0].set(False))
    positions = np.array([[5] * 3, [8] * 3], np.int32)
    again, _ = step(np.array([3, 4], np.int32), positions, cache)
    np.testing.assert_allclose(again[0], fresh[0], atol=1e-5)
    assert np.abs(again[1] - fresh[1]).max() > 1e-2
