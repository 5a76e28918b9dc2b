"""Distillation on the student's own rollouts: its distribution moves towards that of a teacher that knows more.

Both are known by their log-probs at K tokens of the vocabulary, the support, and by that of all others as one further
token, the rest. The support is the teacher's top-K or the student's. The divergence between them is GKD's generalised
Jensen-Shannon divergence (arXiv:2306.13649), which OPSD (arXiv:2601.18734), SDPO (arXiv:2601.20802) and SDFT
(arXiv:2601.19897) take with constants of their own. Only the student has a gradient.
"""

from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import jax
import jax.numpy as jnp

from jvlmm.errors import ConfigError

LEAST_REST = 1e-7
"""The least probability of the rest, as in TRL's SDPO: float32 log-probs cannot tell less from 0."""


@dataclass(frozen=True)
class DistillationConfig:
    """How far the student is from the teacher. There are no rewards in it."""

    top_k: int = 100  # tokens of the support
    support: Literal["teacher", "student"] = "teacher"  # whose top-K tokens these are; the student's cost it a pass
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
        if self.support not in ("teacher", "student"):
            raise ConfigError(f"distillation.support={self.support!r} is unknown; choose teacher or student")
        for name, (valid, what) in allowed.items():
            if not valid:
                raise ConfigError(f"distillation.{name}={getattr(self, name)!r} is not allowed; give a number {what}")


DISTILLATION_PROFILES = MappingProxyType(
    {
        # arXiv:2601.18734: KL(T ‖ S) over the whole vocabulary, each word's part capped; here the teacher's top-K stand
        # for the vocabulary.
        "opsd": DistillationConfig(mix=0.0, word_cap=0.05),
        # arXiv:2601.20802, in its two settings, over the student's top-K as there.
        "sdpo": DistillationConfig(support="student", importance_cap=2.0),
        "sdpo_reverse": DistillationConfig(top_k=20, support="student", mix=1.0, importance_cap=2.0),
        "sdft": DistillationConfig(support="student"),  # arXiv:2601.19897, the support as in TRL's SDFT
        "gkd": DistillationConfig(),  # arXiv:2306.13649, likewise the teacher's top-K for the vocabulary
    }
)


def with_rest(log_probs: jax.Array) -> jax.Array:
    """Returns float32 [..., K + 1]: log-probs [..., K] of different tokens, and that of all others.

    The others have a probability of at least `LEAST_REST`, for the teacher and the student alike: one that holds
    nothing beyond the support and one that holds next to nothing there differ by next to nothing. Where the bound
    holds the rest has no gradient.
    """
    log_probs = log_probs.astype(jnp.float32)
    held = jax.nn.logsumexp(log_probs, axis=-1, keepdims=True)
    rest = jnp.log(-jnp.expm1(jnp.minimum(held, -LEAST_REST)))
    return jnp.concatenate([log_probs, rest], axis=-1)


def divergence(teacher: jax.Array, student: jax.Array, config: DistillationConfig) -> jax.Array:
    """Returns the divergence, float32 [...], between log-probs [..., K] of the same tokens, which need not be all.

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
    """Returns (sum, number of tokens), both float32 scalars, of the divergences of the tokens of `mask`.

    Args:
      mask: bool [B, G, C].
      divergences: float [B, G, C].
      log_probs, sampler_log_probs: float [B, G, C], of the sampled tokens under the student and as they were drawn.
    """
    if config.importance_cap is not None:
        ratio = jnp.exp(jax.lax.stop_gradient(log_probs) - sampler_log_probs)
        divergences = divergences * jnp.minimum(ratio, config.importance_cap)
    total = jnp.where(mask, divergences, 0.0).sum(dtype=jnp.float32)
    return total, mask.sum(dtype=jnp.float32)
