"""Log-probabilities of completions under a policy: the prompt read once for its group, or once for each completion."""

from typing import Any

import jax
import jax.numpy as jnp

from jvlmm.data.batch import Batch
from jvlmm.data.groups import GroupBatch
from jvlmm.models.config import ModelConfig
from jvlmm.models.qwen2_5_vl import encode_vision, forward, token_log_probs
from jvlmm.training.sft import HEAD_TILE, next_token_targets


def group_log_probs(params: Any, config: ModelConfig, batch: GroupBatch, tile: int = HEAD_TILE) -> jax.Array:
    """float32 [B, G, C]: log-probability of every token of the completions, 0 on padding.

    One forward pass over P + G·C places a prompt. The first token of a completion is predicted by the prompt's last.
    `tile` is the number of tokens whose logits exist at a time.
    """
    features = batch.features
    if batch.vision is not None:
        features = encode_vision(params, config, batch.vision)
    rows = batch.tokens, batch.positions, batch.segment_ids, batch.visual_index
    hidden = forward(params, config, *rows, features, batch.prefix)
    before = _before_completions(hidden, batch)
    mask = batch.completion_mask
    targets = batch.tokens[:, batch.prefix.prompt :]
    log_probs = token_log_probs(params, config, before, targets, tile, mask.reshape(targets.shape))
    return log_probs.reshape(mask.shape)


def _before_completions(hidden: jax.Array, batch: GroupBatch) -> jax.Array:
    """[B, G·C, D]: of [B, L, D], the place before every token of the completions."""
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
