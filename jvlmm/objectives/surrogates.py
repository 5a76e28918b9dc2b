"""The surrogates of the GRPO family: what is minimised at each token, or for each rollout.

Arrays are float32, per token [B, G, C] unless said otherwise, with 0 in `log_probs` and `old_log_probs` where
`mask` (bool [B, G, C]) is False. A is the advantage, ρ = π / π_old the ratio of probabilities.
"""

import jax
import jax.numpy as jnp

from jvlmm.objectives.advantages import STD_EPSILON

LOG_RATIO_LIMIT = 20.0  # of |log ρ|, so that ρ and its products stay finite


def token_ratio(log_probs: jax.Array, old_log_probs: jax.Array) -> jax.Array:
    """ρ_t = exp(log π_t − log π_old,t); |log ρ| is cut off at 20."""
    return jnp.exp(jnp.clip(log_probs - old_log_probs, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT))


def sequence_ratio(log_probs: jax.Array, old_log_probs: jax.Array, mask: jax.Array) -> jax.Array:
    """sg[s] · π_t / sg[π_t], s = exp(mean over the rollout's tokens of log π − log π_old).

    GSPO-token (arXiv:2507.18071 eq. 7, 13, 14): the value at every token is s, and with one advantage for the whole
    rollout the gradient is that of GSPO; advantages that differ by token are allowed.
    """
    log_ratio = (log_probs - old_log_probs).sum(-1, keepdims=True) / jnp.maximum(mask.sum(-1, keepdims=True), 1)
    stopped = jax.lax.stop_gradient
    return token_ratio(log_probs - stopped(log_probs) + stopped(log_ratio), 0.0)


def clipped_surrogate(
    ratio: jax.Array, advantages: jax.Array, clip_low: float, clip_high: float, dual_clip: float | None = None
) -> jax.Array:
    """−min(ρ A, clip(ρ, 1 − clip_low, 1 + clip_high) A).

    PPO (arXiv:1707.06347 eq. 7), GRPO (arXiv:2402.03300 eq. 3); DAPO has clip_high > clip_low (arXiv:2503.14476 §3.1).
    With `dual_clip` c the loss of A < 0 is at most −c A (dual-clip PPO, arXiv:1912.09729).
    """
    clipped = jnp.clip(ratio, 1 - clip_low, 1 + clip_high)
    gain = jnp.minimum(ratio * advantages, clipped * advantages)
    if dual_clip is not None:
        gain = jnp.where(advantages < 0, jnp.maximum(gain, dual_clip * advantages), gain)
    return -gain


def cispo_surrogate(log_probs: jax.Array, ratio: jax.Array, advantages: jax.Array, ratio_cap: float) -> jax.Array:
    """−sg[min(ρ, ratio_cap)] A log π: no token loses its gradient, a large ratio only its size.

    CISPO (MiniMax-M1, arXiv:2506.13585 eq. 4, without a lower bound as there); the cap is ρ's own, not 1 + ε, as in
    ScaleRL (arXiv:2510.13786) and TRL.
    """
    return -jax.lax.stop_gradient(jnp.minimum(ratio, ratio_cap)) * advantages * log_probs


def regression_surrogate(
    log_probs: jax.Array, old_log_probs: jax.Array, advantages: jax.Array, mask: jax.Array
) -> jax.Array:
    """(A − Â)², Â the group-normalised log-ratio of each whole rollout, float32 [B, G].

    Reg-GRPO (DeepVideo-R1, arXiv:2506.07464 eq. 7, 8): Â = (ρ − mean ρ) / std ρ over the group with
    ρ = Σ_t log π_t − log π_old,t. To be normalised as the advantages are, the std has ddof = 1 and 1e-4 is added to
    it; at π = π_old, where it is 0, no gradient goes through it. Groups whose advantages are all 0 order nothing and
    give 0, as do rollouts without tokens.

    Args:
      advantages: float [B, G], one for each rollout of whole groups, G ≥ 2.
    """
    present = mask.any(-1)
    rho = (log_probs - old_log_probs).sum(-1)
    number = present.sum(-1, keepdims=True)
    mean = jnp.where(present, rho, 0.0).sum(-1, keepdims=True) / jnp.maximum(number, 1)
    centred = jnp.where(present, rho - mean, 0.0)
    variance = jnp.square(centred).sum(-1, keepdims=True) / jnp.maximum(number - 1, 1)
    varies = variance > 0
    std = jnp.where(varies, jnp.sqrt(jnp.where(varies, variance, 1.0)), 0.0)
    used = present & (advantages != 0).any(-1, keepdims=True)
    return jnp.where(used, jnp.square(advantages - centred / (std + STD_EPSILON)), 0.0)


def importance_weights(old_log_probs: jax.Array, sampler_log_probs: jax.Array, cap: float) -> jax.Array:
    """min(π_old / π_sampler, cap) without gradient: what the surrogate of a token that another program drew weighs.

    Truncated importance sampling (Yao et al., "Your Efficient RL Framework Secretly Brings You Off-Policy RL
    Training", 2025, https://fengyao.notion.site/off-policy-rl), by token.
    """
    return jax.lax.stop_gradient(jnp.minimum(token_ratio(old_log_probs, sampler_log_probs), cap))


def offline_surrogate(log_probs: jax.Array, advantages: jax.Array, shape: float) -> jax.Array:
    """−A π / (π + shape): of tokens that another policy wrote, whose probability counts as 1.

    LUFFY's shaped importance sampling (arXiv:2504.14945 §3.2, shape 0.1): the gradient is largest for tokens that the
    policy holds unlikely, and there is no clip.
    """
    probabilities = jnp.exp(log_probs)
    return -advantages * probabilities / (probabilities + shape)
