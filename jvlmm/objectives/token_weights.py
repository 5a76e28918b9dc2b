"""TW-GRPO: tokens weigh more where the rollouts of a group diverge.

"Reinforcing Video Reasoning with Focused Thinking" (arXiv:2505.24718). The formulas are those of the authors' code
(github.com/longmalongma/TW-GRPO, commit 3abc3c3, `compute_token_importance_kl_logs_uniform`). The weights multiply the
advantages: `policy_loss(…, advantages[..., None] * token_weights(…), …)`.
"""

import math

import jax
import jax.numpy as jnp

_LIMIT = 11.0  # of the log-ratio in the exponential


def group_divergence(log_probs: jax.Array, completion_mask: jax.Array, vocab_size: int) -> jax.Array:
    """How far the rollouts of a group are from their mean at each position.

    Σ_v mean_G [exp(d) − d − 1] with d = mean_G log p(v) − log p(v). A rollout that has ended counts as uniform.

    The result is a sum over the tokens v: the vocabulary may come in tiles whose results add up, so that nothing of
    size V need be held. Given only each rollout's own token, as `log_probs[..., None]`, it measures how differently
    sure of their tokens the rollouts are; that is cheap, and not what the authors compute.

    Args:
      log_probs: float [B, G, C, v], log-probs of v of the V tokens at each position of each completion.
      completion_mask: bool [B, G, C].
      vocab_size: V.

    Returns:
      float32 [B, C].
    """
    uniform = -math.log(vocab_size)
    log_probs = jnp.where(completion_mask[..., None], log_probs.astype(jnp.float32), uniform)
    d = jnp.clip(log_probs.mean(axis=1, keepdims=True) - log_probs, -_LIMIT, _LIMIT)
    return (jnp.exp(d) - d - 1).sum(-1).mean(axis=1)


def token_weights(divergence: jax.Array, completion_mask: jax.Array, alpha: float) -> jax.Array:
    """Weights in [1, alpha]: the divergence between its least and its largest value in the group, without gradient.

    Args:
      divergence: float [B, C].
      completion_mask: bool [B, G, C]; positions at which every rollout has ended bound nothing.
      alpha: the largest weight.

    Returns:
      float32 [B, 1, C]; 1 at all positions where the divergence does not vary.
    """
    used = completion_mask.any(axis=1)
    divergence = jax.lax.stop_gradient(divergence.astype(jnp.float32))
    least = jnp.where(used, divergence, jnp.inf).min(axis=-1, keepdims=True)
    largest = jnp.where(used, divergence, -jnp.inf).max(axis=-1, keepdims=True)
    share = jnp.where(used & (largest > least), (divergence - least) / (largest - least + 1e-8), 0.0)
    return (1 + (alpha - 1) * share)[:, None, :]
