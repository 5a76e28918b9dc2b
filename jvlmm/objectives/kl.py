"""Estimators of KL(policy ‖ reference) from the log-probs of sampled tokens.

J. Schulman, "Approximating KL divergence", http://joschu.net/blog/kl-approx.html, 2020, with r = reference / policy:
k1 = −log r is unbiased and of large variance; k2 = ½ (log r)² is biased and never negative; k3 = r − 1 − log r is
unbiased and never negative. In a loss, where the gradient goes through the estimate and not through the sampling,
k1 has a gradient of mean zero on-policy and so restrains nothing; k2 has the gradient of the KL.
"""

from typing import Literal

import jax
import jax.numpy as jnp

Estimator = Literal["k1", "k2", "k3"]
_LIMIT = 10.0  # of |log r| in k3, whose exponential would overflow


def token_kl(log_probs: jax.Array, reference_log_probs: jax.Array, estimator: Estimator) -> jax.Array:
    """The estimate at each token, float32, differentiable in `log_probs`; the arrays have one shape."""
    x = reference_log_probs.astype(jnp.float32) - log_probs.astype(jnp.float32)
    match estimator:
        case "k1":
            return -x
        case "k2":
            return jnp.square(x) / 2
        case "k3":
            x = jnp.clip(x, -_LIMIT, _LIMIT)
            return jnp.exp(x) - x - 1
        case unknown:
            raise ValueError(f"no KL estimator {unknown!r}: k1, k2 or k3")


def rollout_kl(
    log_probs: jax.Array, reference_log_probs: jax.Array, completion_mask: jax.Array, estimator: Estimator
) -> jax.Array:
    """float32 [B, G]: the estimate summed over the tokens of each rollout, without gradient.

    β times it is subtracted from the reward where the penalty belongs there: `rewards - beta * rollout_kl(…)`.
    Arrays are [B, G, C]; masked entries may hold anything.
    """
    kept = (jnp.where(completion_mask, x, 0.0) for x in (log_probs, reference_log_probs))
    return jax.lax.stop_gradient(token_kl(*kept, estimator).sum(-1))
