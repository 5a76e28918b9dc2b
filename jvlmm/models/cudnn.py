"""Attention by cuDNN's fused kernel, through `jax.nn.dot_product_attention`."""

from typing import Literal

import jax
import jax.numpy as jnp

_LARGEST_HEAD = 128


def fits(query: jax.Array, key: jax.Array) -> bool:
    """Whether the kernel takes these arrays: half precision, heads of at most 128 in eights, more than one query."""
    half = query.dtype in (jnp.bfloat16, jnp.float16) and query.dtype == key.dtype
    head_dim = query.shape[-1]
    return half and head_dim <= _LARGEST_HEAD and head_dim % 8 == 0 and query.shape[2] > 1


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    query_segments: jax.Array | None,
    key_segments: jax.Array | None,
    causal: bool,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> jax.Array:
    """As `attention.attend`; a mask of [B, 1, L, T] stands for the segments. `xla` runs the same without cuDNN."""
    mask = None
    if query_segments is not None:
        same = query_segments[:, :, None] == key_segments[:, None, :]
        mask = (same & (key_segments != 0)[:, None, :])[:, None]
    rows, keys, values = (x.swapaxes(1, 2) for x in (query, key, value))
    mixed = jax.nn.dot_product_attention(rows, keys, values, mask=mask, is_causal=causal, implementation=implementation)
    if query_segments is None:
        return mixed
    return jnp.where((query_segments != 0)[:, :, None, None], mixed, 0)
