"""Attention of several completions to one prompt, whose keys and values exist once.

A token of a completion attends to the prompt and to its own completion. Scores against the two lie in separate arrays
under one softmax, so that nothing of the prompt is repeated: exact, at P + G·C keys instead of G·(P + C).
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jvlmm.models.remat import attended

MASKED = -1e30
LOWEST_PEAK = -1e20  # so that a row which may attend to nothing weighs every key exp(-1e30 + 1e20) = 0


@dataclass(frozen=True)
class SharedPrefix:
    """Where the tokens of a row lie: a prompt, its padding included, then completions side by side."""

    prompt: int  # places
    group: int  # completions
    completion: int  # places of each

    @property
    def length(self) -> int:
        """Places of a row."""
        return self.prompt + self.group * self.completion


def attend_shared(
    query: jax.Array,
    prompt: tuple[jax.Array, jax.Array],
    own: tuple[jax.Array, jax.Array],
    prompt_valid: jax.Array,
    own_mask: jax.Array,
    max_scores: int | None = None,
) -> jax.Array:
    """Softmax attention to the keys of a prompt and to those of one's own completion, with grouped key/value heads.

    Args:
        query: [B, H, G, C, head_dim].
        prompt: keys and values, each [B, H_kv, P, head_dim]; H is a multiple of H_kv.
        own: keys and values, each [B, H_kv, G, T, head_dim].
        prompt_valid: bool [B, P].
        own_mask: bool [B or 1, G or 1, C, T]: whether a query sees a key of its completion.
        max_scores: of a head that exist at one time; more are computed completion by completion, and again in the
            backward pass. None: no limit.

    Returns:
        [B, H, G, C, head_dim] of the values' dtype; scores and softmax are float32.
    """
    group, queries, keys = query.shape[2], query.shape[3], prompt[0].shape[2] + own[0].shape[3]
    if max_scores is None or group * queries * keys <= max_scores:
        return _attend(query, *prompt, *own, prompt_valid, own_mask)
    tile = min(queries, max(1, max_scores // keys))
    tiles = -(-queries // tile)
    missing = tiles * tile - queries

    def split(x, axis):
        """[…, C, …] -> [tiles, …, tile, …]."""
        x = jnp.pad(x, [(0, missing if i == axis else 0) for i in range(x.ndim)])
        return jnp.moveaxis(x.reshape(*x.shape[:axis], tiles, tile, *x.shape[axis + 1 :]), axis, 0)

    def one(of_completion):
        query, own, own_mask = of_completion
        run = jax.checkpoint(lambda part: _attend(part[0], *prompt, *own, prompt_valid, part[1]))
        mixed = jax.lax.map(run, (split(query, 3), split(own_mask, 2)))
        mixed = jnp.moveaxis(mixed, 0, 3)  # [B, H, 1, tiles, tile, head_dim]
        return mixed.reshape(*query.shape[:3], tiles * tile, query.shape[-1])[:, :, :, :queries]

    apart = lambda x, axis: jnp.moveaxis(x[:, :, :, None] if axis == 2 else x[:, :, None], axis, 0)  # noqa: E731
    masks = jnp.broadcast_to(own_mask, (own_mask.shape[0], group, *own_mask.shape[2:]))
    mixed = jax.lax.map(one, (apart(query, 2), tuple(apart(x, 2) for x in own), apart(masks, 1)))
    return jnp.moveaxis(mixed[:, :, :, 0], 0, 2)


def causal_mask(length: int) -> jax.Array:
    """bool [1, 1, length, length]: a completion's tokens see those before them."""
    places = jnp.arange(length)
    return (places[None, :] <= places[:, None])[None, None]


@jax.custom_vjp
def _attend(query, prompt_key, prompt_value, own_key, own_value, prompt_valid, own_mask):
    """`attend_shared` with all scores at once; the backward pass computes the weights again (Dao et al. 2022)."""
    return _attend_forward(query, prompt_key, prompt_value, own_key, own_value, prompt_valid, own_mask)[0]


def _attend_forward(query, prompt_key, prompt_value, own_key, own_value, prompt_valid, own_mask):
    rows = _rows(query, prompt_key)
    scores = _scores(rows, prompt_key, own_key, prompt_valid, own_mask)
    peak = jnp.maximum(*(part.max(axis=-1, keepdims=True) for part in scores))
    peak = jnp.maximum(peak, LOWEST_PEAK)
    weights = tuple(jnp.exp(part - peak) for part in scores)
    total = jnp.maximum(sum(part.sum(axis=-1, keepdims=True) for part in weights), 1e-30)
    to_prompt, to_own = (part.astype(prompt_value.dtype) for part in weights)
    mixed = jnp.einsum("bkrgct,bktd->bkrgcd", to_prompt, prompt_value, preferred_element_type=jnp.float32)
    mixed += _mixed_own(to_own, own_value)
    mixed, peak, total = map(attended, ((mixed / total).astype(prompt_value.dtype), peak, total))
    kept = query, prompt_key, prompt_value, own_key, own_value, prompt_valid, own_mask, mixed, peak, total
    return mixed.reshape(query.shape), kept


def _attend_backward(kept, gradient):
    query, prompt_key, prompt_value, own_key, own_value, prompt_valid, own_mask, mixed, peak, total = kept
    rows = _rows(query, prompt_key)
    gradient = gradient.reshape(rows.shape)
    mean = jnp.sum(gradient.astype(jnp.float32) * mixed.astype(jnp.float32), axis=-1, keepdims=True)
    of_rows, of_keys, of_values = 0.0, [], []
    scores = _scores(rows, prompt_key, own_key, prompt_valid, own_mask)
    for part, key, value, keys in zip(
        scores, (prompt_key, own_key), (prompt_value, own_value), ("bktd", "bkgtd"), strict=True
    ):
        weights = jnp.exp(part - peak) / total
        of_values.append(jnp.einsum(f"bkrgct,bkrgcd->{keys}", weights.astype(value.dtype), gradient))
        of_weights = jnp.einsum(f"bkrgcd,{keys}->bkrgct", gradient, value, preferred_element_type=jnp.float32)
        of_scores = (weights * (of_weights - mean)).astype(key.dtype)
        of_rows += jnp.einsum(f"bkrgct,{keys}->bkrgcd", of_scores, key)
        of_keys.append(jnp.einsum(f"bkrgct,bkrgcd->{keys}", of_scores, rows))
    of_query = (of_rows * query.shape[-1] ** -0.5).reshape(query.shape).astype(query.dtype)
    return of_query, of_keys[0], of_values[0], of_keys[1], of_values[1], None, None


_attend.defvjp(_attend_forward, _attend_backward)


def _rows(query, key):
    """Scaled queries [B, H_kv, H / H_kv, G, C, head_dim]."""
    batch, heads, *rest = query.shape
    return (query * query.shape[-1] ** -0.5).reshape(batch, key.shape[1], heads // key.shape[1], *rest)


def _scores(rows, prompt_key, own_key, prompt_valid, own_mask):
    """float32 [B, H_kv, R, G, C, P] and [B, H_kv, R, G, C, T]."""
    to_prompt = jnp.einsum("bkrgcd,bktd->bkrgct", rows, prompt_key, preferred_element_type=jnp.float32)
    to_own = _own_scores(rows, own_key)
    to_prompt = jnp.where(prompt_valid[:, None, None, None, None], to_prompt, MASKED)
    return to_prompt, jnp.where(own_mask[:, None, None], to_own, MASKED)


def _own_scores(rows, key):
    """float32 [B, H_kv, R, G, C, T]. Of one query each, matrix products would only copy the keys into another order."""
    if rows.shape[4] > 1:
        return jnp.einsum("bkrgcd,bkgtd->bkrgct", rows, key, preferred_element_type=jnp.float32)
    return jnp.sum(rows.astype(jnp.float32) * key[:, :, None].astype(jnp.float32), axis=-1)[:, :, :, :, None]


def _mixed_own(weights, value):
    """float32 [B, H_kv, R, G, C, head_dim]; see `_own_scores`."""
    if weights.shape[4] > 1:
        return jnp.einsum("bkrgct,bkgtd->bkrgcd", weights, value, preferred_element_type=jnp.float32)
    weights = weights.astype(jnp.float32).swapaxes(4, 5)
    return jnp.sum(weights * value[:, :, None].astype(jnp.float32), axis=-2)[:, :, :, :, None]
