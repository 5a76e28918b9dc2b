"""The policy loss of the GRPO family, and the options that tell its members apart.

`profiles.PROFILES` holds the published settings. The loss takes log-probs and advantages, however they were made.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jvlmm.errors import ConfigError
from jvlmm.objectives import surrogates
from jvlmm.objectives.aggregation import Aggregation, aggregate, without_truncated
from jvlmm.objectives.kl import Estimator, token_kl


@dataclass(frozen=True)
class GRPOConfig:
    """How rewards become advantages and advantages a loss. The default is GRPO without reference model.

    An option that another one leaves without effect is None, or refused.
    """

    scale: Literal["group", "none", "batch", "ema"] = "group"  # of advantages, see `advantages` and `task_moments`
    ema_decay: float | None = None  # of the moments of scale="ema"
    difficulty: float = 0.0  # prompts weigh exp(difficulty · how much harder than usual they are); 0 is off
    token_weight: float | None = None  # largest weight of a token where rollouts diverge (TW-GRPO's alpha); None is off
    objective: Literal["clipped", "cispo", "regression"] = "clipped"
    ratio: Literal["token", "sequence"] = "token"  # whose probabilities are compared with the old policy's
    clip_low: float | None = 0.2  # "clipped": ratios below 1 − clip_low gain nothing
    clip_high: float | None = 0.2  # "clipped": nor do those above 1 + clip_high
    dual_clip: float | None = None  # "clipped": bound of the ratio where the advantage is negative; None is off
    ratio_cap: float | None = None  # "cispo": the ratio counts as at most this
    importance_cap: float | None = None  # of π_old / π_sampler, by which tokens are weighted; None is off
    offline_shape: float = 0.1  # of rollouts that another policy wrote, see `surrogates.offline_surrogate`
    aggregation: Aggregation = "sequence-mean"
    max_length: int | None = None  # "fixed-length": tokens; None in a stage is its sampling.max_tokens
    beta: float = 0.0  # weight of KL(policy ‖ reference); with 0 there is no reference model
    kl: Estimator | None = None
    kl_place: Literal["loss", "reward"] | None = None

    def __post_init__(self) -> None:
        _check_values(self)
        _check_needs(self)


def policy_loss(
    log_probs: jax.Array,
    old_log_probs: jax.Array | None,
    advantages: jax.Array,
    completion_mask: jax.Array,
    config: GRPOConfig,
    reference_log_probs: jax.Array | None = None,
    sampler_log_probs: jax.Array | None = None,
    prompt_weights: jax.Array | None = None,
    rollout_mask: jax.Array | None = None,
    offline: jax.Array | None = None,
    truncated: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    """Summed loss of a microbatch, the count it is divided by, and sums to report.

    Microbatches may cut the prompts and, except with objective "regression", the groups: sums and counts add up to
    those of the whole. Log-probs are [B, G, C] and masked entries may hold anything.

    Args:
      log_probs: float, of the sampled tokens under the policy; the only input with a gradient.
      old_log_probs: under the policy that sampled, as the trainer computes them; None where that is the policy
        itself, in the only update on these rollouts.
      advantages: float [B, G], or [B, G, C] by token.
      completion_mask: bool [B, G, C], up to and with the first end-of-sequence token. A rollout without tokens adds 0.
      reference_log_probs: needed where the KL penalty is in the loss; reported where given.
      sampler_log_probs: as the sampler computed them, needed with `importance_cap`; the gap is reported where given.
      prompt_weights: float [B], of each prompt's surrogate; the KL penalty has none. None for 1.
      rollout_mask: bool [B, G], False for rollouts that only fill the array; None for none.
      offline: bool [B, G], True for rollouts that another policy wrote: they have a surrogate of their own, and no part
        in the figures of ratios and of the sampler. None for none.
      truncated: bool [B, G], True for rollouts that are filtered because they were cut off: they add 0 to the sum and
        to the figures, and stay in the count (see `aggregation.without_truncated`). None for none.

    Returns:
      float32 scalars (sum, count) and extras: `tokens` and `rollouts` learnt; summed over the tokens `ratio_sum`,
      `clipped_low` and `clipped_high` (tokens whose gradient the bound took, or whose ratio it cut), `clipped_dual`,
      `kl_sum` and `sampler_gap_sum` (|log π_old − log π_sampler|), each where it is defined; with `offline`
      `offline_tokens` and over them `offline_probability_sum`.

    Raises ValueError for missing log-probs, and for shapes that do not fit.
    """
    _check_arrays(log_probs, advantages, config, reference_log_probs, sampler_log_probs)
    mask = jnp.asarray(completion_mask, bool)
    rollout_mask = jnp.ones(mask.shape[:2], bool) if rollout_mask is None else jnp.asarray(rollout_mask, bool)
    counted = mask & rollout_mask[..., None]
    mask, learnt = counted, rollout_mask
    if truncated is not None:
        mask, learnt = without_truncated(counted, truncated), rollout_mask & ~truncated

    def kept(x):
        return None if x is None else jnp.where(mask, x.astype(jnp.float32), 0.0)

    log_probs, reference, sampler = kept(log_probs), kept(reference_log_probs), kept(sampler_log_probs)
    old = log_probs if old_log_probs is None else kept(old_log_probs)
    old, advantages, reference = jax.lax.stop_gradient((old, advantages.astype(jnp.float32), reference))
    losses, extras = _losses(log_probs, old, sampler, advantages, mask, offline, config)
    if prompt_weights is not None:
        losses = losses * prompt_weights[:, None, None]
    if reference is not None:
        kl = token_kl(log_probs, reference, config.kl or "k3")
        extras["kl_sum"] = jax.lax.stop_gradient(jnp.where(mask, kl, 0.0).sum())
        if config.kl_place == "loss":
            losses = losses + config.beta * kl
    losses = jnp.where(mask, losses, 0.0)
    total, count = aggregate(losses, counted, rollout_mask, config.aggregation, config.max_length)
    return total, count, {"tokens": _count(mask), "rollouts": _count(learnt), **extras}


def _losses(
    log_probs: jax.Array,
    old: jax.Array,
    sampler: jax.Array | None,
    advantages: jax.Array,
    mask: jax.Array,
    offline: jax.Array | None,
    config: GRPOConfig,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The surrogates [B, G, C] of what the policy sampled, and of what another one wrote; and extras."""
    own = mask if offline is None else mask & ~offline[..., None]
    losses, extras = _surrogate(log_probs, old, advantages, own, config)
    if sampler is not None:
        extras["sampler_gap_sum"] = jnp.where(own, jnp.abs(old - sampler), 0.0).sum()
        if config.importance_cap is not None:
            losses = losses * surrogates.importance_weights(old, sampler, config.importance_cap)
    if offline is not None:
        others, by_token = mask & ~own, advantages[..., None] if advantages.ndim == 2 else advantages
        losses = jnp.where(others, surrogates.offline_surrogate(log_probs, by_token, config.offline_shape), losses)
        probability = jax.lax.stop_gradient(jnp.where(others, jnp.exp(log_probs), 0.0).sum())
        extras |= {"offline_tokens": _count(others), "offline_probability_sum": probability}
    return losses, extras


def _surrogate(
    log_probs: jax.Array, old: jax.Array, advantages: jax.Array, mask: jax.Array, config: GRPOConfig
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The surrogate at each token [B, G, C] or, of a regression, at each of the rollout's tokens alike; and extras."""
    if config.ratio == "sequence":
        ratio = surrogates.sequence_ratio(log_probs, old, mask)
    else:
        ratio = surrogates.token_ratio(log_probs, old)
    extras = {"ratio_sum": jax.lax.stop_gradient(jnp.where(mask, ratio, 0.0).sum())}
    by_token = advantages[..., None] if advantages.ndim == 2 else jnp.where(mask, advantages, 0.0)
    match config.objective:
        case "clipped":
            losses = surrogates.clipped_surrogate(ratio, by_token, config.clip_low, config.clip_high, config.dual_clip)
            extras["clipped_low"] = _count(mask & (ratio < 1 - config.clip_low) & (by_token < 0))
            extras["clipped_high"] = _count(mask & (ratio > 1 + config.clip_high) & (by_token > 0))
            if config.dual_clip is not None:
                extras["clipped_dual"] = _count(mask & (ratio > config.dual_clip) & (by_token < 0))
        case "cispo":
            losses = surrogates.cispo_surrogate(log_probs, ratio, by_token, config.ratio_cap)
            extras["clipped_high"] = _count(mask & (ratio > config.ratio_cap))
        case "regression":
            losses = surrogates.regression_surrogate(log_probs, old, advantages, mask)[..., None]
    return jnp.broadcast_to(losses, mask.shape), extras


def _count(mask: jax.Array) -> jax.Array:
    return mask.sum().astype(jnp.float32)


def _check_arrays(log_probs: Any, advantages: Any, config: GRPOConfig, reference: Any, sampler: Any) -> None:
    if log_probs.ndim != 3 or advantages.shape not in (log_probs.shape[:2], log_probs.shape):
        raise ValueError(
            f"log_probs {log_probs.shape} and advantages {advantages.shape}: want [B, G, C] and [B, G] or [B, G, C]"
        )
    if config.objective == "regression" and (advantages.ndim != 2 or advantages.shape[1] < 2):
        raise ValueError(
            f"objective 'regression' compares whole groups: want advantages [B, G] with G of at least 2, got "
            f"{advantages.shape}"
        )
    if config.kl_place == "loss" and reference is None:
        raise ValueError("the KL penalty in the loss needs reference_log_probs")
    if config.importance_cap is not None and sampler is None:
        raise ValueError("importance_cap needs sampler_log_probs")


def _check_values(config: GRPOConfig) -> None:
    """Raises ConfigError for a value outside what the option allows by itself."""
    choices = {
        "scale": ("group", "none", "batch", "ema"),
        "objective": ("clipped", "cispo", "regression"),
        "ratio": ("token", "sequence"),
        "aggregation": ("sequence-mean", "token-mean", "fixed-length"),
        "kl": (None, "k1", "k2", "k3"),
        "kl_place": (None, "loss", "reward"),
    }
    for name, allowed in choices.items():
        if getattr(config, name) not in allowed:
            names = ", ".join("none" if choice is None else choice for choice in allowed)
            raise ConfigError(f"grpo.{name}={getattr(config, name)!r} is unknown; choose one of {names}")
    ranges = {
        "ema_decay": (lambda x: 0 <= x < 1, "a number in [0, 1)"),
        "difficulty": (lambda x: x >= 0, "a number of at least 0"),
        "token_weight": (lambda x: x > 1, "a number above 1"),
        "clip_low": (lambda x: 0 < x <= 1, "a number in (0, 1]"),
        "clip_high": (lambda x: x > 0, "a positive number"),
        "dual_clip": (lambda x: x > 1, "a number above 1"),
        "ratio_cap": (lambda x: x > 0, "a positive number"),
        "importance_cap": (lambda x: x > 0, "a positive number"),
        "offline_shape": (lambda x: x > 0, "a positive number"),
        "max_length": (lambda x: x >= 1, "an integer of at least 1"),
        "beta": (lambda x: x >= 0, "a number of at least 0"),
    }
    for name, (valid, allowed) in ranges.items():
        value = getattr(config, name)
        if value is not None and not (math.isfinite(value) and valid(value)):
            raise ConfigError(f"grpo.{name}={value!r} is not allowed; give {allowed}")


def _check_needs(config: GRPOConfig) -> None:
    """Raises ConfigError for an option that is missing, and for one that would have no effect."""
    clipped, regression = config.objective == "clipped", config.objective == "regression"
    tied = (  # name, whether it has an effect, whether it must then be given, with what
        ("ema_decay", config.scale == "ema", True, "grpo.scale=ema"),
        ("clip_low", clipped, True, "grpo.objective=clipped"),
        ("clip_high", clipped, True, "grpo.objective=clipped"),
        ("dual_clip", clipped, False, "grpo.objective=clipped"),
        ("ratio_cap", config.objective == "cispo", True, "grpo.objective=cispo"),
        ("max_length", config.aggregation == "fixed-length", False, "grpo.aggregation=fixed-length"),
        ("kl", config.beta > 0, True, "a positive grpo.beta"),
        ("kl_place", config.beta > 0, True, "a positive grpo.beta"),
        ("importance_cap", not regression, False, "an objective by token"),
        ("token_weight", not regression, False, "an objective by token"),
    )
    for name, effective, needed, condition in tied:
        given = getattr(config, name) is not None
        if given and not effective:
            raise ConfigError(
                f"grpo.{name}={getattr(config, name)!r} has an effect only with {condition}; leave it none"
            )
        if effective and needed and not given:
            raise ConfigError(f"grpo.{name} is none, but {condition} needs it; set it, or take a profile that does")
    if config.ratio == "sequence" and not clipped:
        raise ConfigError(
            f"grpo.ratio='sequence' has an effect only with grpo.objective=clipped; got {config.objective}"
        )
    if regression and config.aggregation != "sequence-mean":
        raise ConfigError(
            f"grpo.aggregation={config.aggregation!r}: grpo.objective=regression has one loss for each rollout; use "
            "sequence-mean"
        )
