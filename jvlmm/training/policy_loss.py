"""The loss of a policy's update: one pass over prompts and their completions, and what the objective makes of it."""

from typing import Any

import jax
import jax.numpy as jnp

from jvlmm.data.groups import GroupBatch
from jvlmm.models.config import ModelConfig
from jvlmm.objectives import visd
from jvlmm.objectives.aggregation import without_truncated
from jvlmm.objectives.distillation import DistillationConfig, distillation_loss, divergence, with_rest
from jvlmm.objectives.grpo import GRPOConfig, policy_loss
from jvlmm.objectives.token_weights import token_weights
from jvlmm.objectives.visd import VISDConfig
from jvlmm.training.completions import diverging_log_probs, group_log_probs, log_probs_with_logits
from jvlmm.training.sft import HEAD_TILE
from jvlmm.training.step import LossFn

Lesson = VISDConfig | DistillationConfig
"""What a student makes of its teacher's words."""


def make_policy_loss(
    config: ModelConfig,
    objective: GRPOConfig,
    temperature: float = 1.0,
    lesson: Lesson | None = None,
    tile: int = HEAD_TILE,
) -> LossFn:
    """Loss function for `make_train_step`, of a GroupBatch: each prompt is read once for its group, its media once.

    The policy is the model at the `temperature` that the rollouts are drawn at. `tile` is the number of tokens whose
    logits exist at a time. With `objective.token_weight` the policy's own distributions in this pass weigh the tokens;
    in a batch that has a teacher's words the tokens follow the `lesson`, with a DistillationConfig instead of rewards.
    """

    def loss(params: Any, batch: GroupBatch) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        mask, advantages, further = batch.completion_mask, batch.advantages, {}
        if batch.teacher is not None:
            log_probs, logits = log_probs_with_logits(params, config, batch, _words(batch), tile, temperature)
            if isinstance(lesson, DistillationConfig):
                return _distilled(batch, log_probs, logits, lesson)
            advantages, further = _weighed(batch, *jax.lax.stop_gradient((log_probs, logits)), lesson)
        elif objective.token_weight is not None:
            log_probs, diverging = diverging_log_probs(params, config, batch, tile, temperature)
            weights = token_weights(diverging, mask, objective.token_weight)
            advantages = advantages[..., None] * weights
            learnt = mask & batch.rollout_mask[..., None]  # as policy_loss counts `tokens`, by which this is divided
            learnt = learnt if batch.truncated is None else without_truncated(learnt, batch.truncated)
            further = {"token_weight_sum": jnp.sum(weights * learnt)}
        else:
            log_probs = group_log_probs(params, config, batch, tile, temperature)
        total, count, extras = policy_loss(
            log_probs,
            batch.old_log_probs,
            advantages,
            mask,
            objective,
            reference_log_probs=batch.reference_log_probs,
            sampler_log_probs=batch.sampler_log_probs,
            prompt_weights=batch.prompt_weights,
            rollout_mask=batch.rollout_mask,
            offline=batch.offline,
            truncated=batch.truncated,
        )
        return total, count, extras | further

    return loss


def gaps_and_weights(
    params: Any,
    config: ModelConfig,
    batch: GroupBatch,
    lesson: VISDConfig,
    temperature: float = 1.0,
    tile: int = HEAD_TILE,
) -> tuple[jax.Array, jax.Array]:
    """(how much more the teacher holds of every token than the student, its weight), both float32 [B, G, C].

    Of a batch that has the teacher's words; the weights are 1 where nothing was known.
    """
    gap = _gap(batch, *log_probs_with_logits(params, config, batch, _words(batch), tile, temperature), lesson)
    weights = visd.token_weights(gap, batch.advantages, lesson)
    return gap, jnp.where(batch.teacher.known[..., None], weights, 1.0)


def _gap(batch: GroupBatch, log_probs: jax.Array, logits: jax.Array, lesson: VISDConfig) -> jax.Array:
    """float32 [B, G, C]; `logits` [B, G, C, K + 1] are the student's of the teacher's best words and the sampled."""
    teacher = batch.teacher
    of_best = teacher.ids, teacher.logits, logits[..., :-1], _sampled(batch), teacher.own_logits, logits[..., -1]
    return visd.evidence_gap(visd.gap_over_best(*of_best), teacher.log_probs, log_probs, lesson)


def _weighed(batch: GroupBatch, log_probs: jax.Array, logits: jax.Array, lesson: VISDConfig):
    """(advantages [B, G, C], sums to report)."""
    teacher = batch.teacher
    gap = _gap(batch, log_probs, logits, lesson)
    weights = visd.token_weights(gap, batch.advantages, lesson)
    mask = _taught(batch)
    among = (teacher.ids == _sampled(batch)[..., None]).any(axis=-1)
    sums = visd.weight_sums(gap, weights, batch.advantages, among, mask, lesson)
    strength = teacher.strength[:, None, None]
    return visd.modulated(batch.advantages, weights, strength, lesson, mask), sums


def _distilled(batch: GroupBatch, log_probs: jax.Array, logits: jax.Array, lesson: DistillationConfig):
    """(sum, count, sums to report). What is not taught is not counted, rollouts that were cut off among it."""
    teacher = batch.teacher
    normaliser = lambda own, of_token: (own - of_token)[..., None]  # noqa: E731
    of_teacher = with_rest(teacher.logits - normaliser(teacher.own_logits, teacher.log_probs))
    of_student = with_rest(logits[..., :-1] - normaliser(logits[..., -1], log_probs))
    mask = _taught(batch)
    divergences = divergence(of_teacher, of_student, lesson)
    total, count = distillation_loss(divergences, log_probs, batch.sampler_log_probs, mask, lesson)
    gap = jnp.where(mask, jnp.abs(jax.lax.stop_gradient(log_probs) - batch.sampler_log_probs), 0.0)
    return total, count, {"tokens": count, "sampler_gap_sum": gap.sum()}


def _taught(batch: GroupBatch) -> jax.Array:
    """bool [B, G, C], the tokens that learn from the teacher."""
    mask = batch.completion_mask & (batch.teacher.known & batch.rollout_mask)[..., None]
    return mask if batch.truncated is None else without_truncated(mask, batch.truncated)


def _words(batch: GroupBatch) -> jax.Array:
    """int32 [B, G, C, K + 1]: the K at which the teacher's logits are known, and the sampled one."""
    return jnp.concatenate([batch.teacher.ids, _sampled(batch)[..., None]], axis=-1)


def _sampled(batch: GroupBatch) -> jax.Array:
    """int32 [B, G, C], the tokens of the completions."""
    return batch.tokens[:, batch.prefix.prompt :].reshape(batch.completion_mask.shape)
