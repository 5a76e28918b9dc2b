"""Supervised fine-tuning of the whole model: batch → visual features → hidden → log-probs → loss."""

from typing import Any

import jax
import jax.numpy as jnp

from jvlmm.data.batch import Batch
from jvlmm.models.config import ModelConfig
from jvlmm.models.qwen2_5_vl import encode_vision, forward, token_log_probs
from jvlmm.objectives.sft import sft_loss
from jvlmm.training.step import LossFn

HEAD_TILE = 512  # tokens whose logits exist at a time


def make_sft_loss(config: ModelConfig, tile: int = HEAD_TILE) -> LossFn:
    """Loss function for `make_train_step`.

    `tile` is the number of tokens whose logits exist at a time; [B, L, V] never does. Stretches of the batch in
    which no token carries loss, such as those of visual tokens, never meet the output head.
    """

    def loss(params: Any, batch: Batch) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        features = None if batch.vision is None else encode_vision(params, config, batch.vision)
        hidden = forward(params, config, batch.tokens, batch.positions, batch.segment_ids, batch.visual_index, features)
        targets, mask = next_token_targets(batch.tokens, batch.segment_ids, batch.loss_mask)
        log_probs = token_log_probs(params, config, hidden, targets, tile, mask)
        total, count = sft_loss(log_probs, mask)
        return total, count, {"tokens": jnp.sum(batch.segment_ids > 0), "places": jnp.asarray(batch.segment_ids.size)}

    return loss


def next_token_targets(tokens: jax.Array, segment_ids: jax.Array, loss_mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What each position predicts: the token after it, where that one carries loss and belongs to the same segment.

    Args:
      tokens: int32 [B, L].
      segment_ids: int32 [B, L], 0 on padding, one number for each sequence of a row.
      loss_mask: bool [B, L], True on the tokens to learn.

    Returns:
      (targets int32 [B, L], mask bool [B, L]); the last column is masked.
    """
    following = jnp.roll(segment_ids, -1, axis=1).at[:, -1].set(0)
    mask = jnp.roll(loss_mask, -1, axis=1) & (following == segment_ids) & (segment_ids > 0)
    return jnp.roll(tokens, -1, axis=1), mask
