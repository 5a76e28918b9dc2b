"""Choosing the next token: options, and logits processors as pure functions of float32 [B, V]."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import flax.struct
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

    The penalties change logits before the temperature, in greedy decoding too: `repetition_penalty` as transformers
    has it, of tokens in the prompt or the completion; `presence_penalty` and `frequency_penalty` as OpenAI and vLLM
    have them, of tokens in the completion. With `from_checkpoint` what is left at its default is taken from the
    checkpoint's generation_config.json, see `generation_config.checkpoint_sampling`.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    stop: tuple[str, ...] = ()
    seed: int = 0
    repetition_penalty: float = 1.0  # 1 is off
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    from_checkpoint: bool = False

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
            ("repetition_penalty", 0 < self.repetition_penalty <= 10, "a number in (0, 10] (1 is off)"),
            ("presence_penalty", -2 <= self.presence_penalty <= 2, "a number in [-2, 2] (0 is off)"),
            ("frequency_penalty", -2 <= self.frequency_penalty <= 2, "a number in [-2, 2] (0 is off)"),
            ("seed", 0 <= self.seed < 2**32, "an integer in [0, 2^32)"),
        )
        for name, valid, allowed in checks:
            if not valid:
                raise ConfigError(f"sampling option {name}={getattr(self, name)!r} is not allowed; give {allowed}")
        filters = [name for name, off in (("top_k", 0), ("top_p", 1), ("min_p", 0)) if getattr(self, name) != off]
        if self.temperature == 0 and filters and not self.from_checkpoint:
            raise ConfigError(
                f"sampling option {filters[0]}={getattr(self, filters[0])!r} has no effect at temperature=0, which is "
                "greedy; set a temperature or leave it out"
            )

    @property
    def penalties(self) -> tuple[str, ...]:
        """The names of the penalties that are on."""
        off = {"repetition_penalty": 1, "presence_penalty": 0, "frequency_penalty": 0}
        return tuple(name for name, value in off.items() if getattr(self, name) != value)


@flax.struct.dataclass
class History:
    """What penalties look at: which tokens a row's prompt holds, and how often its completion holds each."""

    prompt: jax.Array  # bool [B, V]
    counts: jax.Array  # int32 [B, V]

    def with_drawn(self, tokens: jax.Array, drawn: jax.Array) -> "History":
        """The history after one more token int32 [B] of every row where `drawn`, bool [B], says so."""
        rows = jnp.arange(len(tokens))
        return self.replace(counts=self.counts.at[rows, tokens].add(drawn.astype(jnp.int32)))


def tokens_seen(tokens: jax.Array, valid: jax.Array, vocab_size: int) -> jax.Array:
    """bool [B, V]: which tokens occur among int32 [B, L], where `valid`, bool [B, L], says so."""
    rows = jnp.arange(len(tokens))[:, None]
    return jnp.zeros((len(tokens), vocab_size), bool).at[rows, tokens].max(valid)


def penalize(logits: jax.Array, history: History, options: SamplingOptions) -> jax.Array:
    """Returns logits float32 [B, V] with the penalties that are on.

    Repetition (Keskar et al., arXiv:1909.05858, as `RepetitionPenaltyLogitsProcessor` of transformers): a positive
    logit of a token seen is divided by the penalty, a negative one multiplied. Frequency and presence (OpenAI's API
    reference): the count of the token times the one, and the other where it is above 0, are subtracted.
    """
    if options.repetition_penalty != 1:
        seen = history.prompt | (history.counts > 0)
        factor = options.repetition_penalty
        logits = jnp.where(seen, jnp.where(logits < 0, logits * factor, logits / factor), logits)
    if options.frequency_penalty:
        logits = logits - options.frequency_penalty * history.counts
    if options.presence_penalty:
        logits = logits - options.presence_penalty * (history.counts > 0)
    return logits


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
    keys: jax.Array,
    logits: jax.Array,
    banned: jax.Array,
    options: SamplingOptions,
    history: History | None = None,
) -> tuple[jax.Array, jax.Array]:
    """One token per row from logits float32 [B, V].

    `keys` [B] holds a key per row, so a row's draw does not depend on its neighbours; `history` is needed where
    penalties are on. Returns tokens int32 [B] and their log-probabilities float32 [B] at the temperature they were
    drawn at (1 where that is 0) among all tokens, filters and penalties or not, as a trainer computes them.
    """
    logits = logits.astype(jnp.float32)
    allowed = ban(penalize(logits, history, options) if options.penalties else logits, banned)
    if options.temperature == 0:
        tokens = jnp.argmax(allowed, axis=-1)
    else:
        tokens = jax.vmap(jax.random.categorical)(keys, process(allowed, options))
    logits = logits / (options.temperature or 1.0)
    chosen = jnp.take_along_axis(logits, tokens[:, None], axis=-1)[:, 0]
    return tokens.astype(jnp.int32), chosen - jax.nn.logsumexp(logits, axis=-1)
