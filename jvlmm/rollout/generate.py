"""Prefill once, decode many: completions of a batch of prompts over a static key-value cache."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jvlmm.data.batch import Batch
from jvlmm.data.positions import next_position
from jvlmm.errors import ConfigError
from jvlmm.models import qwen2_5_vl
from jvlmm.models.cache import KVCache, cache_axes
from jvlmm.models.config import ModelConfig
from jvlmm.rollout.control import PLAIN, Controller, Prompts
from jvlmm.rollout.sampling import History, SamplingOptions, sample, tokens_seen
from jvlmm.sharding.rules import constrained, row_axes

STOP_CHECK_INTERVAL = 32  # tokens decoded on the device between two looks for stop strings on the host
_SMALLEST_BUCKET = 16


@flax.struct.dataclass
class Generation:
    """Completions of a batch; what lies past a row's length is padding with log-probability 0."""

    tokens: np.ndarray  # int32 [B, C], the end-of-sequence token included where one was drawn
    lengths: np.ndarray  # int32 [B]
    log_probs: np.ndarray  # float32 [B, C], as `sampling.sample` gives them
    finished: np.ndarray  # bool [B], False where `max_tokens` cut the completion
    control: Mapping[str, np.ndarray]  # what the controller reports


@flax.struct.dataclass
class DecodeState:
    """What one decoded token hands to the next."""

    tokens: jax.Array  # int32 [B, C]
    log_probs: jax.Array  # float32 [B, C]
    lengths: jax.Array  # int32 [B]
    finished: jax.Array  # bool [B]
    next_position: jax.Array  # int32 [B], M-RoPE position of the next token, equal on the three axes
    keys: jax.Array  # PRNG key [B]
    step: jax.Array  # int32 [], columns written
    cache: KVCache
    control: Any = ()  # the controller's state
    history: History | None = None  # of what was drawn, where penalties look at it


def axes_of(state: DecodeState, control: Controller) -> DecodeState:
    """The logical axes of every array: rows are split, and the key/value heads of what has them."""
    return jax.tree.map(row_axes, state).replace(cache=cache_axes(state.cache), control=control.axes(state.control))


def generate(
    params,
    config: ModelConfig,
    batch: Batch,
    options: SamplingOptions,
    keys: jax.Array,
    banned: np.ndarray,
    decode: Callable[[np.ndarray], str] | None = None,
    control: Controller = PLAIN,
) -> Generation:
    """Completions of the prompts of `batch`, one prompt per row, right-padded; rows without tokens stay empty.

    `keys` [B]: see `sampling.row_keys`; `banned` bool [V]: see `sampling.banned_tokens`; `decode` turns tokens into
    text and is needed for stop strings only; `control` steers decoding. Compiled once per prompt bucket, batch size,
    power of two of `max_tokens`, and fitted controller.
    """
    static, control = traced_options(options), control.fitted(batch, config)
    state = start(params, config, batch, static, keys, banned, control)
    if options.stop:
        if decode is None:
            raise ValueError("stop strings need `decode`")
        state = _decode_to_stop(params, config, state, static, banned, options, decode, control)
    else:
        state = decode_until(params, config, state, static, banned, options.max_tokens, control)
    tokens, log_probs, lengths, finished, report = jax.device_get(
        (state.tokens, state.log_probs, state.lengths, state.finished, control.report(state.control))
    )
    written = np.arange(options.max_tokens) < lengths[:, None]
    return Generation(
        tokens=np.where(written, tokens[:, : options.max_tokens], config.tokens.pad),
        lengths=lengths,
        log_probs=np.where(written, log_probs[:, : options.max_tokens], np.float32(0)),
        finished=finished,
        control=report,
    )


def traced_options(options: SamplingOptions) -> SamplingOptions:
    """What the programs depend on of `options`, and nothing else: `max_tokens` is that of a bucket.

    Raises ConfigError where a checkpoint has still to say how to sample.
    """
    if options.from_checkpoint:
        raise ConfigError(
            "sampling.from_checkpoint=true has not been read from a checkpoint; resolve it with checkpoint_sampling"
        )
    bucket = max(_SMALLEST_BUCKET, 1 << (options.max_tokens - 1).bit_length())
    return replace(options, max_tokens=bucket, stop=(), seed=0)


@partial(jax.jit, static_argnames=("config", "options", "control"))
def start(
    params, config: ModelConfig, batch: Batch, options: SamplingOptions, keys, banned, control: Controller = PLAIN
) -> DecodeState:
    """Run the prompts and draw the first token of each row."""
    rows = len(batch.tokens)
    features = None if batch.vision is None else qwen2_5_vl.encode_vision(params, config, batch.vision)
    inputs = batch.tokens, batch.positions, batch.segment_ids, batch.visual_index
    hidden, kept = qwen2_5_vl.read_prompts(params, config, *inputs, features)
    in_prompt = batch.segment_ids > 0
    prompt_lengths = in_prompt.sum(axis=-1)
    last = jnp.take_along_axis(hidden, jnp.maximum(prompt_lengths - 1, 0)[:, None, None], axis=1)[:, 0]
    logits = qwen2_5_vl.logits(params, config, last)
    prompts = Prompts(batch.tokens, batch.segment_ids, kept, logits, keys)
    cache, controlled = control.begin(prompts, config, options.max_tokens)
    state = DecodeState(
        tokens=jnp.full((rows, options.max_tokens), config.tokens.pad, jnp.int32),
        log_probs=jnp.zeros((rows, options.max_tokens), jnp.float32),
        lengths=jnp.zeros(rows, jnp.int32),
        finished=prompt_lengths == 0,
        next_position=next_position(batch.positions, prompt_lengths),
        keys=keys,
        step=jnp.int32(0),
        cache=cache,
        control=controlled,
        history=_history(config, batch.tokens, in_prompt, options),
    )
    return _drawn(config, state, logits, options, banned, control)


def _history(config: ModelConfig, tokens, in_prompt, options: SamplingOptions) -> History | None:
    """Of prompts alone; None where no penalty looks at it."""
    if not options.penalties:
        return None
    prompt = tokens_seen(tokens, in_prompt, config.text.vocab_size)
    return History(prompt, jnp.zeros(prompt.shape, jnp.int32))


def _drawn(config: ModelConfig, state: DecodeState, logits, options, banned, control) -> DecodeState:
    """The state after the next token of every row, by its logits [B, V]; finished rows get a pad."""
    step_keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(state.keys, state.step)
    drawn, log_probs = sample(step_keys, logits, banned, options=options, history=state.history)
    history = None if state.history is None else state.history.with_drawn(drawn, ~state.finished)
    drawn = jnp.where(state.finished, config.tokens.pad, drawn)
    log_probs = jnp.where(state.finished, 0.0, log_probs)
    ended = jnp.isin(drawn, jnp.array(config.tokens.eos, jnp.int32))
    state = state.replace(
        tokens=jax.lax.dynamic_update_slice(state.tokens, drawn[:, None], (0, state.step)),
        log_probs=jax.lax.dynamic_update_slice(state.log_probs, log_probs[:, None], (0, state.step)),
        lengths=state.lengths + ~state.finished,
        finished=state.finished | ended,
        step=state.step + 1,
        history=history,
    )
    return constrained(state, config.rules, axes_of(state, control))


@partial(jax.jit, static_argnames=("config", "options", "control"), donate_argnames=("state",))
def decode_until(
    params,
    config: ModelConfig,
    state: DecodeState,
    options: SamplingOptions,
    banned,
    until,
    control: Controller = PLAIN,
) -> DecodeState:
    """Decode until every row is finished or `until` columns (int32 scalar) are written."""

    def unfinished(state: DecodeState) -> jax.Array:
        return (state.step < until) & ~jnp.all(state.finished)

    def one_token(state: DecodeState) -> DecodeState:
        token = jax.lax.dynamic_slice_in_dim(state.tokens, state.step - 1, 1, axis=1)[:, 0]
        positions = jnp.broadcast_to(state.next_position[:, None], (token.shape[0], 3))
        logits, cache, controlled = control.step(params, config, token, positions, state.cache, state.control)
        state = state.replace(cache=cache, control=controlled, next_position=state.next_position + 1)
        return _drawn(config, state, logits, options, banned, control)

    return jax.lax.while_loop(unfinished, one_token, state)


def _decode_to_stop(params, config, state: DecodeState, static, banned, options, decode, control) -> DecodeState:
    """Decode in chunks; between two, the host ends the rows whose text holds a stop string."""
    seen = np.zeros(state.tokens.shape[0], np.int32)
    step = 1
    while True:
        tokens, lengths, finished = map(np.array, jax.device_get((state.tokens, state.lengths, state.finished)))
        for row in np.flatnonzero(lengths > seen):
            stopped = length_at_stop(tokens[row, : lengths[row]], seen[row], options.stop, decode)
            if stopped is not None:
                lengths[row], finished[row] = stopped, True
        state = state.replace(
            lengths=jax.device_put(lengths, state.lengths.sharding),
            finished=jax.device_put(finished, state.finished.sharding),
        )
        if finished.all() or step >= options.max_tokens:
            return state
        seen, step = lengths, min(step + STOP_CHECK_INTERVAL, options.max_tokens)
        state = decode_until(params, config, state, static, banned, step, control)


def length_at_stop(tokens: np.ndarray, seen: int, stop: Sequence[str], decode) -> int | None:
    """The number of tokens that first spell a stop string, given that `seen` tokens do not; None where none does."""
    if not contains_stop(decode(tokens), stop):
        return None
    return next(n for n in range(seen + 1, len(tokens) + 1) if contains_stop(decode(tokens[:n]), stop))


def contains_stop(text: str, stop: Sequence[str]) -> bool:
    """Whether any stop string occurs in `text`."""
    return any(string in text for string in stop)


def cut_at_stop(text: str, stop: Sequence[str]) -> str:
    """`text` up to the first stop string in it."""
    return text[: min((text.find(string) for string in stop if string in text), default=len(text))]
