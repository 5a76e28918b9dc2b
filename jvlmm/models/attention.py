"""Attention inside segments: one function for the tower's windows and frames, the decoder and its cache."""

import jax
import jax.numpy as jnp

_MASKED = -1e30  # finite, so that a row which may attend to nothing has a uniform softmax and no NaN
_DENSE_SCORES = 2048 * 2048  # larger score matrices per head are computed in tiles of queries


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    query_segments: jax.Array | None = None,
    key_segments: jax.Array | None = None,
    causal: bool = False,
) -> jax.Array:
    """Softmax attention with grouped key/value heads, which are never repeated in memory.

    A query attends to the keys of its own segment; segment 0 is padding and is attended by nothing.

    Args:
        query: [B, H, L, head_dim].
        key, value: [B, H_kv, T, head_dim]; H is a multiple of H_kv, and consecutive query heads share a key head.
        query_segments: int32 [B, L], or None where every query attends to every key.
        key_segments: int32 [B, T]; given together with `query_segments`.
        causal: whether query i sees keys 0..i only; L equals T then.

    Returns:
        [B, L, H, head_dim] of value's dtype; scores and softmax are float32.
    """
    length = query.shape[2]
    tile = max(1, _DENSE_SCORES // key.shape[2])
    offsets = jnp.arange(length) if causal else None
    if length <= tile:
        return _attend_dense(query, key, value, query_segments, key_segments, offsets)
    return _attend_tiled(query, key, value, query_segments, key_segments, offsets, tile)


def _attend_dense(query, key, value, query_segments, key_segments, offsets):
    """`attend` with all scores at once; `offsets` int32 [L] are the queries' own places when causal."""
    batch, heads, length, head_dim = query.shape
    kv_heads, keys = key.shape[1:3]
    query = (query * head_dim**-0.5).reshape(batch, kv_heads, -1, head_dim)  # rows: (query head of the group, place)
    scores = jnp.einsum("bkrd,bktd->bkrt", query, key, preferred_element_type=jnp.float32)
    mask = _mask(query_segments, key_segments, offsets, keys)
    if mask is not None:
        scores = scores.reshape(batch, kv_heads, -1, length, keys)
        scores = jnp.where(mask[:, None, None], scores, _MASKED).reshape(batch, kv_heads, -1, keys)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    mixed = jnp.einsum("bkrt,bktd->bkrd", weights, value)
    return mixed.reshape(batch, heads, length, head_dim).swapaxes(1, 2)


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


def _attend_tiled(query, key, value, query_segments, key_segments, offsets, tile):
    """`attend` over tiles of queries, recomputed in the backward pass: memory is [B, H, tile, T]."""
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
        return _attend_dense(tile_of[0], key, value, tile_of[1], key_segments, tile_of[2])

    mixed = jax.lax.map(one, (split(query, 2), split(query_segments, 1), split(offsets, 0)))
    mixed = jnp.moveaxis(mixed, 0, 1)  # [B, tiles, tile, H, head_dim]
    return mixed.reshape(mixed.shape[0], tiles * tile, *mixed.shape[3:])[:, :length]
