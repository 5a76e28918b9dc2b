"""V-Reason Lite: prompts whose video rows of low norm have left the keys and values of every layer."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jvlmm.models.cache import Stores
from jvlmm.test_time.vreason import LiteOptions


def dropped_rows(video_rows: Any, ratio: float) -> Any:
    """⌊ratio · n⌋ int32, of NumPy's or JAX's n."""
    return (video_rows.astype(np.float32) * np.float32(ratio)).astype(np.int32)


def pruned(
    kept: Stores, is_video: jax.Array, valid: jax.Array, options: LiteOptions, slots: int
) -> tuple[Stores, jax.Array, jax.Array, jax.Array]:
    """Keys and values of `slots` tokens: a row's text in its order, then the video rows that stay, in theirs.

    The order of slots says nothing, for keys keep their rotation. Text is never dropped.

    Args:
        kept: keys and values [B, H_kv, L, head_dim] of every layer: tuples, or with a leading layer axis.
        is_video, valid: bool [B, L].
        slots: at least the tokens that any row keeps.

    Returns:
        (keys and values [B, H_kv, slots, head_dim], valid bool [B, slots], text rows int32 [B], video rows int32 [B]).
    """
    is_video = is_video & valid
    text, video = (valid & ~is_video).sum(axis=-1), is_video.sum(axis=-1)
    video = video - dropped_rows(video, options.ratio)
    layer = partial(_layer, is_video=is_video, is_text=valid & ~is_video, video=video, options=options, slots=slots)
    keys, values = kept
    if isinstance(keys, tuple):
        pairs = [layer(key, value) for key, value in zip(keys, values, strict=True)]
        kept = tuple(key for key, _ in pairs), tuple(value for _, value in pairs)
    else:
        kept = jax.lax.map(lambda pair: layer(*pair), (keys, values))
    return kept, jnp.arange(slots) < (text + video)[:, None], text, video


def _layer(key, value, is_video, is_text, video, options: LiteOptions, slots: int):
    """One layer's pair [B, H_kv, L, head_dim]."""
    ranked = value if options.rank_by == "value" else key
    norms = jnp.linalg.norm(ranked.astype(jnp.float32), axis=-1)
    if not options.per_head:
        norms = norms.mean(axis=1, keepdims=True)
    norms = jnp.where(is_video[:, None], norms, -jnp.inf)
    rank = jnp.argsort(jnp.argsort(-norms, axis=-1), axis=-1)
    stays = is_video[:, None] & (rank < video[:, None, None])
    order = jnp.argsort(jnp.where(is_text[:, None], 0, jnp.where(stays, 1, 2)), axis=-1)[..., :slots]
    take = lambda store: jnp.take_along_axis(store, order[..., None], axis=2)  # noqa: E731
    return take(key), take(value)
