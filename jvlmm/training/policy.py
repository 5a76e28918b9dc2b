"""Policy optimisation of the whole model: groups of completions → log-probs → the objective."""

from typing import Any

import jax

from jvlmm.data.groups import GroupBatch
from jvlmm.models.config import ModelConfig
from jvlmm.objectives.grpo import GRPOConfig, policy_loss
from jvlmm.training.completions import group_log_probs
from jvlmm.training.sft import HEAD_TILE
from jvlmm.training.step import LossFn


def make_policy_loss(config: ModelConfig, objective: GRPOConfig, tile: int = HEAD_TILE) -> LossFn:
    """Loss function for `make_train_step`, of a GroupBatch: each prompt is read once for its group, its media once.

    `tile` is the number of tokens whose logits exist at a time.
    """

    def loss(params: Any, batch: GroupBatch) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        log_probs = group_log_probs(params, config, batch, tile)
        total, count, extras = policy_loss(
            log_probs,
            batch.old_log_probs,
            batch.advantages,
            batch.completion_mask,
            objective,
            reference_log_probs=batch.reference_log_probs,
            sampler_log_probs=batch.sampler_log_probs,
            prompt_weights=batch.prompt_weights,
            rollout_mask=batch.rollout_mask,
        )
        return total, count, extras

    return loss
