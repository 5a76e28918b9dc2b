"""Supervised fine-tuning: the negative log-likelihood of the tokens that carry loss."""

import jax
import jax.numpy as jnp


def sft_loss(log_probs: jax.Array, loss_mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Summed negative log-likelihood and the number of tokens it sums over.

    Sum and count stay apart so that microbatches and devices add up to exactly the loss of the whole
    batch: `loss = Σ sums / Σ counts`.

    Args:
      log_probs: float32 [B, L], log-probability of each target token.
      loss_mask: bool or float [B, L], the weight of each target token; masked entries may hold anything.

    Returns:
      float32 scalars (sum of -log_probs · mask, sum of mask).
    """
    mask = loss_mask.astype(jnp.float32)
    losses = jnp.where(mask > 0, -log_probs.astype(jnp.float32), 0.0)
    return jnp.sum(losses * mask), jnp.sum(mask)
