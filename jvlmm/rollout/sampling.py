"""Choosing the next token: options, and logits processors as pure functions of float32 [B, V]."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jvlmm.errors import ConfigError
from jvlmm.models.config import ModelConfig

MASKED = -1e30  # finite, so that differences of masked logits stay numbers


@dataclass(frozen=True)
class SamplingOptions:
    """How completions are drawn. `temperature` 0 is greedy decoding; top_k 0, top_p 1 and min_p 0 are off.

    Filters apply after the temperature, in the order top-k, top-p, min-p. Generation ends at an end-of-sequence
    token, after `max_tokens`, or where a string of `stop` has been written; the stop string is not part of the text.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    stop: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        checks = (
            ("max_tokens", self.max_tokens >= 1, "an integer of at least 1"),
            (
                "temperature",
                self.temperature == 0 or 1e-6 <= self.temperature < float("inf"),
                "0 (greedy) or a positive number",
            ),
            ("top_k", self.top_k >= 0, "an integer of at least 0 (0 keeps all)"),
            ("top_p", 0 < self.top_p <= 1, "a number in (0, 1] (1 keeps all)"),
            ("min_p", 0 <= self.min_p <= 1, "a number in [0, 1] (0 keeps all)"),
            ("stop", all(self.stop), "non-empty strings"),
            ("seed", 0 <= self.seed < 2**32, "an integer in [0, 2^32)"),
        )
        for name, valid, allowed in checks:
            if not valid:
                raise ConfigError(f"sampling option {name}={getattr(self, name)!r} is not allowed; give {allowed}")
        filters = [name for name, off in (("top_k", 0), ("top_p", 1), ("min_p", 0)) if getattr(self, name) != off]
        if self.temperature == 0 and filters:
            raise ConfigError(
                f"sampling option {filters[0]}={getattr(self, filters[0])!r} has no effect at temperature=0, which is "
                "greedy; set a temperature or leave it out"
            )


def row_keys(seed: int, row_seeds: Sequence[int]) -> jax.Array:
    """A PRNG key [B] per row from the run's seed and a number that stays with the row, uint32."""
    return jax.vmap(partial(jax.random.fold_in, jax.random.key(seed)))(np.asarray(row_seeds, np.uint32))


def banned_tokens(config: ModelConfig, tokenizer_length: int, extra: Iterable[int] = ()) -> np.ndarray:
    """bool [V]: placeholders of media, which only a prompt may hold, and rows of the head the tokenizer cannot name."""
    tokens = config.tokens
    banned = np.arange(config.text.vocab_size) >= tokenizer_length
    banned[[tokens.image, tokens.video, tokens.vision_start, tokens.vision_end, *extra]] = True
    return banned


def ban(logits: jax.Array, banned: jax.Array) -> jax.Array:
    """Logits [B, V] with the banned tokens (bool [V]) masked."""
    return jnp.where(banned, MASKED, logits)


def keep_top_k(logits: jax.Array, k: int) -> jax.Array:
    """Logits [B, V] with all but the k largest masked; ties with the k-th stay."""
    threshold = jax.lax.top_k(logits, min(k, logits.shape[-1]))[0][..., -1:]
    return jnp.where(logits < threshold, MASKED, logits)


def keep_top_p(logits: jax.Array, p: float) -> jax.Array:
    """Logits [B, V] with all masked but the fewest most probable tokens whose mass reaches p (Holtzman et al. 2020)."""
    ordered = -jnp.sort(-logits, axis=-1)
    probabilities = jax.nn.softmax(ordered, axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    threshold = jnp.min(jnp.where(before < p, ordered, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits < threshold, MASKED, logits)


def keep_min_p(logits: jax.Array, p: float) -> jax.Array:
    """Logits [B, V] with tokens masked less probable than p times the most probable one (Nguyen et al. 2024)."""
    return jnp.where(logits < jnp.max(logits, axis=-1, keepdims=True) + jnp.log(p), MASKED, logits)


def process(logits: jax.Array, options: SamplingOptions) -> jax.Array:
    """Temperature and the filters that are on; `options.temperature` must be positive."""
    logits = (logits - jnp.max(logits, axis=-1, keepdims=True)) / options.temperature
    if options.top_k:
        logits = keep_top_k(logits, options.top_k)
    if options.top_p < 1:
        logits = keep_top_p(logits, options.top_p)
    if options.min_p:
        logits = keep_min_p(logits, options.min_p)
    return logits


def sample(
    keys: jax.Array, logits: jax.Array, banned: jax.Array, options: SamplingOptions
) -> tuple[jax.Array, jax.Array]:
    """One token per row from logits float32 [B, V].

    `keys` [B] holds a key per row, so a row's draw does not depend on its neighbours. Returns tokens int32 [B] and
    their log-probabilities float32 [B] at the temperature they were drawn at (1 where that is 0) among all tokens,
    filters or not, as a trainer computes them.
    """
    logits = logits.astype(jnp.float32)
    allowed = ban(logits, banned)
    if options.temperature == 0:
        tokens = jnp.argmax(allowed, axis=-1)
    else:
        tokens = jax.vmap(jax.random.categorical)(keys, process(allowed, options))
    logits = logits / (options.temperature or 1.0)
    chosen = jnp.take_along_axis(logits, tokens[:, None], axis=-1)[:, 0]
    return tokens.astype(jnp.int32), chosen - jax.nn.logsumexp(logits, axis=-1)
