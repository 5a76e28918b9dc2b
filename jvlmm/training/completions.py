"""Log-probabilities of completions under a policy: the prompt read once for its group, or once for each completion."""

from typing import Any

import jax
import jax.numpy as jnp

from jvlmm.data.batch import Batch
from jvlmm.data.groups import GroupBatch
from jvlmm.models.config import ModelConfig
from jvlmm.models.log_probs import project, word_tiles
from jvlmm.models.qwen2_5_vl import best_words, encode_vision, forward, output_head, token_log_probs, word_logits
from jvlmm.objectives.token_weights import group_divergence
from jvlmm.training.sft import HEAD_TILE, next_token_targets


def group_log_probs(
    params: Any, config: ModelConfig, batch: GroupBatch, tile: int = HEAD_TILE, temperature: float = 1.0
) -> jax.Array:
    """float32 [B, G, C]: log-probability of every token of the completions at this temperature, 0 on padding.

    One forward pass over P + G·C places a prompt. The first token of a completion is predicted by the prompt's last.
    `tile` is the number of tokens whose logits exist at a time.
    """
    return _log_probs(params, config, _before_completions(params, config, batch), batch, tile, temperature)


def diverging_log_probs(
    params: Any, config: ModelConfig, batch: GroupBatch, tile: int = HEAD_TILE, temperature: float = 1.0
) -> tuple[jax.Array, jax.Array]:
    """`group_log_probs`, and float32 [B, C]: the `group_divergence` of the same pass, without gradient."""
    before = _before_completions(params, config, batch)
    log_probs = _log_probs(params, config, before, batch, tile, temperature)
    known = jax.lax.stop_gradient((output_head(params), before, log_probs))
    return log_probs, _divergence(*known, batch, tile, temperature)


def log_probs_with_logits(
    params: Any,
    config: ModelConfig,
    batch: GroupBatch,
    words: jax.Array,
    tile: int = HEAD_TILE,
    temperature: float = 1.0,
) -> tuple[jax.Array, jax.Array]:
    """`group_log_probs`, and of the same pass float32 [B, G, C, K]: the logits of `words` int32 [B, G, C, K]."""
    before = _before_completions(params, config, batch)
    flat = words.reshape(*before.shape[:2], -1)
    found = word_logits(params, config, before, flat, tile, temperature)
    return _log_probs(params, config, before, batch, tile, temperature), found.reshape(words.shape)


def teacher_words(
    params: Any,
    config: ModelConfig,
    batch: GroupBatch,
    starts: jax.Array,
    places: int,
    top_k: int,
    tile: int = HEAD_TILE,
    temperature: float = 1.0,
    vocab: int | None = None,
    words: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Returns (ids, their logits, logits and log-probs of the sampled tokens), as in `TeacherWords`, 0 on padding.

    Args:
      batch: what the teacher reads; its completions begin with hindsight.
      starts: int32 [B, G], the places of these at which the student's own completions begin.
      places: C of the student's batch.
      vocab: words of the student, where the teacher may have more rows; None for as many.
      words: int32 [B, G, places, K], the ids whose logits are wanted; None for this model's own top-K.
    """
    shape = *starts.shape, places
    index = starts[..., None] + jnp.arange(places)
    last = batch.prefix.completion - 1
    taken = lambda x: jnp.take_along_axis(x.reshape(*starts.shape, last + 1), jnp.minimum(index, last), axis=2)  # noqa: E731
    mask = (taken(batch.completion_mask) & (index <= last)).reshape(len(starts), -1)
    targets = taken(batch.tokens[:, batch.prefix.prompt :]).reshape(mask.shape)
    before = _before_completions(params, config, batch)
    offsets = jnp.arange(shape[1])[:, None] * (last + 1)
    chosen = (jnp.minimum(index, last) + offsets).reshape(mask.shape)
    before = jnp.take_along_axis(before, chosen[..., None], axis=1)
    sought = top_k if words is None else 1
    log_probs, own, ids, best = best_words(params, config, before, targets, sought, tile, mask, temperature, vocab)
    if words is not None:
        ids = words.reshape(*mask.shape, -1)
        best = jnp.where(mask[..., None], word_logits(params, config, before, ids, tile, temperature), 0.0)
    return ids.reshape(*shape, -1), best.reshape(*shape, -1), own.reshape(shape), log_probs.reshape(shape)


def _log_probs(
    params: Any, config: ModelConfig, before: jax.Array, batch: GroupBatch, tile: int, temperature: float
) -> jax.Array:
    targets = batch.tokens[:, batch.prefix.prompt :]
    mask = batch.completion_mask.reshape(targets.shape)
    log_probs = token_log_probs(params, config, before, targets, tile, mask, temperature)
    return log_probs.reshape(batch.completion_mask.shape)


def _divergence(
    head: jax.Array, before: jax.Array, log_probs: jax.Array, batch: GroupBatch, tile: int, temperature: float
) -> jax.Array:
    """In tiles of places and of words: the normaliser of a token is its own logit less its log-probability."""
    rows, group, places = log_probs.shape
    own = jnp.take(head, batch.tokens[:, batch.prefix.prompt :], axis=0).astype(before.dtype)
    normaliser = jnp.einsum("bld,bld->bl", before, own, preferred_element_type=jnp.float32).reshape(log_probs.shape)
    normaliser = normaliser / temperature - log_probs
    span = min(places, max(1, tile // (rows * group)))
    tiles = -(-places // span)
    words = word_tiles(head)

    def split(x):
        """[B, G, C, …] -> [tiles, B, G, span, …]."""
        x = jnp.pad(x, [(0, tiles * span - places if axis == 2 else 0) for axis in range(x.ndim)])
        return jnp.moveaxis(x.reshape(rows, group, tiles, span, *x.shape[3:]), 2, 0)

    def one(of_tile):
        hidden, normaliser, mask = of_tile

        def add(total, index):
            of_words = project(hidden, words[:, index]) / temperature - normaliser[..., None]
            return total + group_divergence(of_words, mask, len(head)), None

        return jax.lax.scan(add, jnp.zeros((rows, span), jnp.float32), jnp.arange(words.shape[1]))[0]

    arrays = before.reshape(*log_probs.shape, -1), normaliser, batch.completion_mask
    divergence = jax.lax.map(one, tuple(map(split, arrays)))
    return jnp.moveaxis(divergence, 0, 1).reshape(rows, -1)[:, :places]


def _before_completions(params: Any, config: ModelConfig, batch: GroupBatch) -> jax.Array:
    """[B, G·C, D]: the hidden state at the place before every token of the completions."""
    features = batch.features
    if batch.vision is not None:
        features = encode_vision(params, config, batch.vision)
    rows = batch.tokens, batch.positions, batch.segment_ids, batch.visual_index
    hidden = forward(params, config, *rows, features, batch.prefix)
    prefix = batch.prefix
    last = jnp.maximum(batch.prompt_lengths - 1, 0)[:, None, None]
    of_prompt = jnp.take_along_axis(hidden, last, axis=1)[:, None]
    own = hidden[:, prefix.prompt :].reshape(len(hidden), prefix.group, prefix.completion, -1)
    of_prompt = jnp.broadcast_to(of_prompt, (*own.shape[:2], 1, own.shape[-1]))
    return jnp.concatenate([of_prompt, own[:, :, :-1]], axis=2).reshape(len(hidden), -1, own.shape[-1])


def row_log_probs(params: Any, config: ModelConfig, batch: Batch, tile: int = HEAD_TILE) -> tuple[jax.Array, jax.Array]:
    """The usual layout, for comparison: (float32 [B, L], bool [B, L]) of rows that each hold prompt and completion.

    Place i of a row tells of token i + 1; True where that token is one of the completion (see `data.separate_rows`).
    """
    features = None if batch.vision is None else encode_vision(params, config, batch.vision)
    hidden = forward(params, config, batch.tokens, batch.positions, batch.segment_ids, batch.visual_index, features)
    targets, mask = next_token_targets(batch.tokens, batch.segment_ids, batch.loss_mask)
    return token_log_probs(params, config, hidden, targets, tile, mask), mask
