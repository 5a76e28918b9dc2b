"""VISD: a teacher that knows more decides how much of a rollout's advantage each of its tokens gets.

"VISD: Enhancing Video Reasoning via Structured Self-Distillation" (arXiv:2605.06094); constants and formulas are those
of the authors' released code, which takes its token weights from RLSD (arXiv:2604.03128). The teacher reads the same
completion after a prompt with hindsight. The direction of an update stays the advantage's:

    weights = token_weights(gap, advantages, config)
    advantages = modulated(advantages, weights, config.strength_at(step), config, completion_mask)
    policy_loss(…, advantages, …)

Arrays are [B, G, C] by token. Nothing here has a gradient.
"""

from dataclasses import dataclass
from types import MappingProxyType

import jax
import jax.numpy as jnp

from jvlmm.errors import ConfigError

THIRDS = ("first", "middle", "last")  # of a rollout's tokens


@dataclass(frozen=True)
class VISDConfig:
    """How a teacher's opinion becomes weights. The default is the authors' release."""

    top_k: int = 16  # words of the teacher that the gap is taken over
    sampled: float = 0.0  # share of the gap over the whole vocabulary (RLSD's) in that over the teacher's best words
    clip: float = 0.2  # weights lie in 1 ± clip
    strength: float = 0.5  # of the weights at the first step
    anneal_steps: int = 600  # after which the advantage is GRPO's again
    negative_only: bool = False  # leave rollouts of positive advantage as they are (RLSD's option)

    def __post_init__(self) -> None:
        allowed = {
            "top_k": (self.top_k >= 1, "at least 1"),
            "sampled": (0 <= self.sampled <= 1, "in [0, 1]"),
            "clip": (0 < self.clip < 1, "in (0, 1)"),
            "strength": (0 < self.strength <= 1, "in (0, 1]"),
            "anneal_steps": (self.anneal_steps >= 1, "at least 1"),
        }
        for name, (valid, what) in allowed.items():
            if not valid:
                raise ConfigError(f"visd.{name}={getattr(self, name)!r} is not allowed; give a number {what}")

    def strength_at(self, step: int) -> float:
        """λ of optimiser step `step`, from 1: it falls linearly, and is 0 from `anneal_steps` + 1 on."""
        left = (self.anneal_steps - (step - 1)) / self.anneal_steps
        return self.strength * max(0.0, left)


VISD_PROFILES = MappingProxyType(
    {
        "visd_release": VISDConfig(),
        # RLSD, arXiv:2604.03128: the whole vocabulary, annealed within 50 to 60 steps.
        "rlsd": VISDConfig(sampled=1.0, anneal_steps=50),
    }
)


def gap_over_best(
    ids: jax.Array, teacher: jax.Array, student: jax.Array, tokens: jax.Array, own_teacher: jax.Array, own: jax.Array
) -> jax.Array:
    """How much more the teacher holds of the sampled token than the student, among the teacher's best words and it.

    [z_T(y) − lse_S z_T] − [z_S(y) − lse_S z_S] with S the K best words of the teacher and y the sampled token, which
    joins where it is not among them.

    Args:
      ids: int32 [..., K], the teacher's K best words.
      teacher, student: float [..., K], the logits of both at these words.
      tokens: int32 [...], y.
      own_teacher, own: float [...], the logits of both at y.

    Returns:
      float32 [...].
    """
    absent = (ids != tokens[..., None]).all(axis=-1)

    def log_prob(best, of_token):
        best, of_token = best.astype(jnp.float32), of_token.astype(jnp.float32)
        joined = jnp.concatenate([best, jnp.where(absent, of_token, -jnp.inf)[..., None]], axis=-1)
        return of_token - jax.nn.logsumexp(joined, axis=-1)

    return jax.lax.stop_gradient(log_prob(teacher, own_teacher) - log_prob(student, own))


def evidence_gap(
    over_best: jax.Array, teacher_log_probs: jax.Array, log_probs: jax.Array, config: VISDConfig
) -> jax.Array:
    """float32 [...]: (1 − γ) times `gap_over_best` and γ times log p_T(y) − log p_S(y), γ = `config.sampled`."""
    sampled = jax.lax.stop_gradient(teacher_log_probs - log_probs).astype(jnp.float32)
    return (1 - config.sampled) * over_best + config.sampled * sampled


def token_weights(gap: jax.Array, advantages: jax.Array, config: VISDConfig) -> jax.Array:
    """float32 [B, G, C]: exp(sign(A) · gap), clipped to 1 ± `config.clip`; advantages float [B, G]."""
    sign = jnp.sign(advantages.astype(jnp.float32))[..., None]
    return jnp.clip(jnp.exp(sign * gap), 1 - config.clip, 1 + config.clip)


def modulated(
    advantages: jax.Array, weights: jax.Array, strength: float | jax.Array, config: VISDConfig, mask: jax.Array
) -> jax.Array:
    """float32 [B, G, C]: A · [(1 − λ) + λ · w], of the sign of A; advantages themselves off `mask` bool [B, G, C].

    λ = `strength`; with 0 they are GRPO's to the bit.
    """
    advantages = advantages.astype(jnp.float32)[..., None]
    used = mask & (advantages < 0) if config.negative_only else mask
    return jnp.where(used, advantages * ((1 - strength) + strength * weights), advantages)


def weight_sums(
    gap: jax.Array,
    weights: jax.Array,
    advantages: jax.Array,
    among_best: jax.Array,
    mask: jax.Array,
    config: VISDConfig,
) -> dict[str, jax.Array]:
    """float32 sums over the tokens of `mask` whose advantage is not 0, and over those of each third of the rollouts.

    `visd/gap` is to be divided by `visd/tokens`, `visd/gap/first` by `visd/tokens/first`, and so on.

    Args:
      among_best: bool [B, G, C], whether the sampled token is one of the teacher's best words.
    """
    used = mask & (advantages != 0)[..., None]
    unclipped = jnp.exp(jnp.sign(advantages)[..., None] * gap)
    figures = {
        "tokens": jnp.ones_like(gap),
        "weight": weights,
        "clipped": jnp.abs(unclipped - 1) > config.clip,
        "gap": gap,
        "gap_abs": jnp.abs(gap),
        "among_best": among_best,
    }
    lengths = jnp.maximum(mask.sum(axis=-1, keepdims=True), 1)
    third = 3 * jnp.arange(gap.shape[-1]) // lengths
    parts = {"": used} | {f"/{name}": used & (third == number) for number, name in enumerate(THIRDS)}
    return {
        f"visd/{name}{part}": jnp.where(among, figure, 0.0).sum(dtype=jnp.float32)
        for part, among in parts.items()
        for name, figure in figures.items()
    }
