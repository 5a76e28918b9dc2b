"""From losses of tokens to (sum, count): sums and counts of microbatches add up before they are divided."""

from typing import Literal

import jax
import jax.numpy as jnp

Aggregation = Literal["sequence-mean", "token-mean", "fixed-length"]


def aggregate(
    losses: jax.Array,
    completion_mask: jax.Array,
    rollout_mask: jax.Array,
    aggregation: Aggregation,
    max_length: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Returns the sum of the losses and the count to divide it by.

    "sequence-mean": mean over the tokens of a rollout, then over rollouts (GRPO, arXiv:2402.03300 eq. 3);
    "token-mean": mean over all tokens (DAPO, arXiv:2503.14476 §3.3);
    "fixed-length": sum over the tokens of a rollout / max_length, mean over rollouts (Dr. GRPO, arXiv:2503.20783 §3).
    Rollouts without tokens add 0 to the sum; in the first and the last they are counted.

    Args:
      losses: float32 [B, G, C]; masked entries may hold anything.
      completion_mask: bool [B, G, C].
      rollout_mask: bool [B, G], False for rollouts that only fill the array.
      max_length: the length that stands for that of every rollout, of "fixed-length" alone: the longest that may be
        sampled.

    Returns:
      float32 scalars (sum, count).

    Raises ValueError for an unknown aggregation, and for "fixed-length" without a length.
    """
    losses = jnp.where(completion_mask, losses, 0.0)
    tokens = completion_mask.sum(-1).astype(jnp.float32)
    rollouts = rollout_mask.sum().astype(jnp.float32)
    match aggregation:
        case "sequence-mean":
            return (losses.sum(-1) / jnp.maximum(tokens, 1)).sum(), rollouts
        case "token-mean":
            return losses.sum(), tokens.sum()
        case "fixed-length":
            if max_length is None:
                raise ValueError("aggregation 'fixed-length' needs max_length, the longest completion that is sampled")
            return losses.sum() / max_length, rollouts
        case unknown:
            raise ValueError(f"no aggregation {unknown!r}: sequence-mean, token-mean or fixed-length")


def without_truncated(completion_mask: jax.Array, truncated: jax.Array) -> jax.Array:
    """Returns the mask with no token left of rollouts that were cut off.

    Overlong filtering (DAPO, arXiv:2503.14476 §3.4): what is not in the mask has no loss. The count of
    `aggregate` keeps it, tokens and rollouts alike, as TRL's `mask_truncated_completions` does: a step with many such
    rollouts moves the policy less.

    Args:
      completion_mask: bool [B, G, C].
      truncated: bool [B, G], the rollouts that ended for want of room.
    """
    return completion_mask & ~truncated[..., None]
