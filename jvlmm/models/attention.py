"""Attention inside segments: one function for the tower's windows and frames, the decoder and its cache."""

import jax
import jax.numpy as jnp

from jvlmm.models import cudnn, splash
from jvlmm.models.config import ModelConfig
from jvlmm.models.remat import attended
from jvlmm.models.shared_prefix import LOWEST_PEAK, MASKED, SharedPrefix, attend_shared, causal_mask

_DENSE_SCORES = 2048 * 2048  # larger score matrices per head are computed in tiles of queries
_CAUSAL_PIECE = 192  # queries that share one horizon of keys …
_CAUSAL_PIECES = 8  # … but no more pieces than this, to keep programs small


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    query_segments: jax.Array | None = None,
    key_segments: jax.Array | None = None,
    causal: bool = False,
    config: ModelConfig | None = None,
    prefix: SharedPrefix | None = None,
) -> jax.Array:
    """Softmax attention with grouped key/value heads, which are never repeated in memory.

    A query attends to the keys of its own segment; segment 0 is padding and is attended by nothing. A query that may
    attend to nothing gives zeros.

    Args:
        query: [B, H, L, head_dim].
        key, value: [B, H_kv, T, head_dim]; H is a multiple of H_kv, and consecutive query heads share a key head.
        query_segments: int32 [B, L], or None where every query attends to every key.
        key_segments: int32 [B, T]; given together with `query_segments`.
        causal: whether query i sees keys 0..i only; L equals T then.
        prefix: with `causal`, where rows hold a prompt and completions of it, which do not see one another.

    Returns:
        [B, L, H, head_dim] of value's dtype; scores and softmax are float32.
    """
    if config is not None and config.attention == "splash" and splash.fits(query, key):
        return splash.attend(query, key, value, query_segments, key_segments, causal, config.rules, prefix=prefix)
    if prefix is not None:
        return _attend_groups(query, key, value, query_segments, config, prefix)
    if config is not None and config.attention == "cudnn" and cudnn.fits(query, key):
        return cudnn.attend(query, key, value, query_segments, key_segments, causal)
    if not causal:
        return _attend_rows(query, key, value, query_segments, key_segments, None)
    length = query.shape[2]
    span = -(-length // causal_pieces(length))
    mixed = []
    for start in range(0, length, span):  # no piece meets the keys after its last query
        end = min(start + span, length)
        segments = (None, None)
        if query_segments is not None:
            segments = (query_segments[:, start:end], key_segments[:, :end])
        horizon = key[:, :, :end], value[:, :, :end]
        mixed.append(_attend_rows(query[:, :, start:end], *horizon, *segments, jnp.arange(start, end)))
    return jnp.concatenate(mixed, axis=1)


def attend_with_weights(
    query: jax.Array, key: jax.Array, value: jax.Array, key_segments: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """`attend` of one query a row, [B, H, 1, head_dim], and its weights: ([B, 1, H, head_dim], float32 [B, H, T]).

    The output is that of `attend` to the bit.
    """
    query_segments = jnp.ones((len(query), 1), jnp.int32)
    mask = _mask(query_segments, key_segments, None, key.shape[2])
    mixed, residuals = _attend_dense_forward(query, key, value, mask)
    *_, peak, total = residuals
    weights = jnp.exp(_scores(_rows(query, key), key, mask) - peak) / total
    return mixed, weights.reshape(*query.shape[:2], key.shape[2])


def _attend_groups(query, key, value, segments, config, prefix):
    """`attend` of rows that hold a prompt and completions of it: segment 0 is padding, every other number is alike."""
    end = prefix.prompt
    to_prompt = key[:, :, :end], value[:, :, :end]
    valid = segments[:, :end]
    mixed = attend(query[:, :, :end], *to_prompt, valid, valid, causal=True, config=config)
    apart = lambda x: x[:, :, end:].reshape(*x.shape[:2], prefix.group, prefix.completion, -1)  # noqa: E731
    own, mask = (apart(key), apart(value)), causal_mask(prefix.completion)
    after = attend_shared(apart(query), to_prompt, own, valid != 0, mask, _DENSE_SCORES)
    after = after.reshape(*query.shape[:2], -1, query.shape[-1]).swapaxes(1, 2)
    return jnp.concatenate([mixed, after], axis=1)


def causal_pieces(length: int) -> int:
    """Pieces that `attend` cuts a causal sequence into; each reads, and keeps, the keys up to its end."""
    return min(_CAUSAL_PIECES, -(-length // _CAUSAL_PIECE))


def dense_queries(keys: int) -> int:
    """Queries whose scores with so many keys exist at one time."""
    return max(1, _DENSE_SCORES // keys)


def _attend_rows(query, key, value, query_segments, key_segments, offsets):
    """`attend` at once or in tiles; `offsets` int32 [L] are the queries' own places when causal."""
    tile = dense_queries(key.shape[2])
    if query.shape[2] <= tile:
        return _attend_dense(query, key, value, _mask(query_segments, key_segments, offsets, key.shape[2]))
    return _attend_tiled(query, key, value, query_segments, key_segments, offsets, tile)


def _mask(query_segments, key_segments, offsets, keys):
    """bool [B or 1, L, T], or None where nothing is masked."""
    mask = None
    if query_segments is not None:
        same = query_segments[:, :, None] == key_segments[:, None, :]
        mask = same & (key_segments != 0)[:, None, :]
    if offsets is not None:
        before = (jnp.arange(keys)[None, :] <= offsets[:, None])[None]
        mask = before if mask is None else mask & before
    return mask


@jax.custom_vjp
def _attend_dense(query, key, value, mask):
    """`attend` with all scores at once, under a mask bool [B or 1, L, T].

    The backward pass computes the weights again from each row's peak and total (FlashAttention, Dao et al. 2022), so
    that no array of scores outlives its layer.
    """
    return _attend_dense_forward(query, key, value, mask)[0]


def _attend_dense_forward(query, key, value, mask):
    scores = _scores(_rows(query, key), key, mask)
    peak = jnp.maximum(jnp.max(scores, axis=-1, keepdims=True), LOWEST_PEAK)
    weights = jnp.exp(scores - peak)
    total = jnp.maximum(jnp.sum(weights, axis=-1, keepdims=True), 1e-30)
    mixed = jnp.einsum("bkrt,bktd->bkrd", weights.astype(value.dtype), value, preferred_element_type=jnp.float32)
    mixed, peak, total = map(attended, ((mixed / total).astype(value.dtype), peak, total))
    return mixed.reshape(query.shape).swapaxes(1, 2), (query, key, value, mask, mixed, peak, total)


def _attend_dense_backward(residuals, gradient):
    query, key, value, mask, mixed, peak, total = residuals
    rows = _rows(query, key)
    gradient = gradient.swapaxes(1, 2).reshape(rows.shape)
    weights = jnp.exp(_scores(rows, key, mask) - peak) / total
    of_value = jnp.einsum("bkrt,bkrd->bktd", weights.astype(value.dtype), gradient)
    of_weights = jnp.einsum("bkrd,bktd->bkrt", gradient, value, preferred_element_type=jnp.float32)
    mean = jnp.sum(gradient.astype(jnp.float32) * mixed.astype(jnp.float32), axis=-1, keepdims=True)
    of_scores = (weights * (of_weights - mean)).astype(key.dtype)
    of_rows = jnp.einsum("bkrt,bktd->bkrd", of_scores, key) * query.shape[-1] ** -0.5
    of_key = jnp.einsum("bkrt,bkrd->bktd", of_scores, rows)
    return of_rows.reshape(query.shape), of_key, of_value, None


_attend_dense.defvjp(_attend_dense_forward, _attend_dense_backward)


def _rows(query, key):
    """Scaled queries [B, H_kv, R, head_dim]: a row is (query head of the group, place)."""
    batch, kv_heads, _, head_dim = key.shape
    return (query * head_dim**-0.5).reshape(batch, kv_heads, -1, head_dim)


def _scores(rows, key, mask):
    """float32 [B, H_kv, R, T]."""
    scores = jnp.einsum("bkrd,bktd->bkrt", rows, key, preferred_element_type=jnp.float32)
    if mask is None:
        return scores
    by_place = scores.reshape(*scores.shape[:2], -1, *mask.shape[1:])
    return jnp.where(mask[:, None, None], by_place, MASKED).reshape(scores.shape)


def _attend_tiled(query, key, value, query_segments, key_segments, offsets, tile):
    """`attend` over tiles of queries, one at a time also in the backward pass: memory is [B, H, tile, T]."""
    length = query.shape[2]
    tiles = -(-length // tile)

    def split(array, axis):
        if array is None:
            return None
        widths = [(0, 0)] * array.ndim
        widths[axis] = (0, tiles * tile - length)
        shape = (*array.shape[:axis], tiles, tile, *array.shape[axis + 1 :])
        return jnp.moveaxis(jnp.pad(array, widths).reshape(shape), axis, 0)

    @jax.checkpoint
    def one(tile_of):
        query, segments, offsets = tile_of
        return _attend_dense(query, key, value, _mask(segments, key_segments, offsets, key.shape[2]))

    mixed = jax.lax.map(one, (split(query, 2), split(query_segments, 1), split(offsets, 0)))
    mixed = jnp.moveaxis(mixed, 0, 1)  # [B, tiles, tile, H, head_dim]
    return attended(mixed.reshape(mixed.shape[0], tiles * tile, *mixed.shape[3:])[:, :length])
