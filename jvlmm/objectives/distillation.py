"""Distillation on the student's own rollouts: its distribution moves towards that of a teacher that knows more.

A teacher is known by its K best words, and the rest of the vocabulary as one further word. The divergence between it
and the student is GKD's generalised Jensen-Shannon divergence (arXiv:2306.13649), which OPSD (arXiv:2601.18734), SDPO
(arXiv:2601.20802) and SDFT (arXiv:2601.19897) take with constants of their own. Only the student has a gradient.
"""

from dataclasses import dataclass
from types import MappingProxyType

import jax
import jax.numpy as jnp

from jvlmm.errors import ConfigError

_LEAST = -1e4  # log-probability of a word that is impossible


@dataclass(frozen=True)
class DistillationConfig:
    """How far the student is from the teacher. There are no rewards in it."""

    top_k: int = 100  # words of the teacher
    mix: float = 0.5  # the teacher's share in the mixture both are compared with; 0: KL(T ‖ S), 1: KL(S ‖ T)
    word_cap: float | None = None  # a word adds at most this to the divergence of a token (OPSD); None is off
    importance_cap: float | None = None  # of π / π_sampler, by which tokens are weighted (SDPO); None is off

    def __post_init__(self) -> None:
        allowed = {
            "top_k": (self.top_k >= 1, "at least 1"),
            "mix": (0 <= self.mix <= 1, "in [0, 1]"),
            "word_cap": (self.word_cap is None or self.word_cap > 0, "above 0, or None"),
            "importance_cap": (self.importance_cap is None or self.importance_cap > 0, "above 0, or None"),
        }
        for name, (valid, what) in allowed.items():
            if not valid:
                raise ConfigError(f"distillation.{name}={getattr(self, name)!r} is not allowed; give a number {what}")


DISTILLATION_PROFILES = MappingProxyType(
    {
        # arXiv:2601.18734: KL(T ‖ S) over the whole vocabulary, each word's part capped.
        "opsd": DistillationConfig(mix=0.0, word_cap=0.05),
        # arXiv:2601.20802, in its two settings.
        "sdpo": DistillationConfig(importance_cap=2.0),
        "sdpo_reverse": DistillationConfig(top_k=20, mix=1.0, importance_cap=2.0),
        "sdft": DistillationConfig(),  # arXiv:2601.19897
        "gkd": DistillationConfig(),  # arXiv:2306.13649
    }
)


def with_rest(log_probs: jax.Array) -> jax.Array:
    """float32 [..., K + 1]: log-probs [..., K] of different words, and that of all others."""
    log_probs = log_probs.astype(jnp.float32)
    left = jnp.maximum(1 - jnp.exp(log_probs).sum(axis=-1, keepdims=True), jnp.exp(_LEAST))
    rest = jnp.where(left > 1e-6, jnp.log(jnp.maximum(left, 1e-6)), _LEAST)
    return jnp.concatenate([log_probs, rest], axis=-1)


def divergence(teacher: jax.Array, student: jax.Array, config: DistillationConfig) -> jax.Array:
    """float32 [...]: between log-probs [..., K] of the same words, which need not be all.

    β · KL(T ‖ M) + (1 − β) · KL(S ‖ M) with M = β T + (1 − β) S and β = `config.mix`; KL(T ‖ S) where β is 0, KL(S ‖ T)
    where it is 1.
    """
    teacher, student = jax.lax.stop_gradient(teacher.astype(jnp.float32)), student.astype(jnp.float32)
    part = lambda p, q: jnp.exp(p) * (p - q)  # noqa: E731
    if config.mix in (0, 1):
        words = part(student, teacher) if config.mix else part(teacher, student)
    else:
        mixture = jnp.logaddexp(teacher + jnp.log(config.mix), student + jnp.log1p(-config.mix))
        words = config.mix * part(teacher, mixture) + (1 - config.mix) * part(student, mixture)
    if config.word_cap is not None:
        words = jnp.minimum(words, config.word_cap)
    return words.sum(axis=-1)


def distillation_loss(
    divergences: jax.Array,
    log_probs: jax.Array,
    sampler_log_probs: jax.Array,
    mask: jax.Array,
    config: DistillationConfig,
) -> tuple[jax.Array, jax.Array]:
    """(sum, number of tokens), both float32: the divergences of the tokens of `mask` bool [B, G, C].

    Args:
      divergences: float [B, G, C].
      log_probs, sampler_log_probs: float [B, G, C], of the sampled tokens under the student and as they were drawn.
    """
    if config.importance_cap is not None:
        ratio = jnp.exp(jax.lax.stop_gradient(log_probs) - sampler_log_probs)
        divergences = divergences * jnp.minimum(ratio, config.importance_cap)
    total = jnp.where(mask, divergences, 0.0).sum(dtype=jnp.float32)
    return total, mask.sum(dtype=jnp.float32)
