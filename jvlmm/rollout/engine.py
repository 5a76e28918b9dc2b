"""Several completions of every prompt: the prompt is read once, and slots are refilled as they fall free."""

import time
import zlib
from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Sized
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import numpy as np

from jvlmm.data.batch import BatchOptions, length_bucket
from jvlmm.data.groups import Rollout, with_features
from jvlmm.data.sequence import Sequence
from jvlmm.data.tokenizer import ChatTokenizer
from jvlmm.errors import ConfigError
from jvlmm.models.config import ModelConfig
from jvlmm.rollout.generate import STOP_CHECK_INTERVAL, length_at_stop, traced_options
from jvlmm.rollout.groups import Slots, begin, decode, empty_slots, place, read
from jvlmm.rollout.sampling import SamplingOptions, banned_tokens


@dataclass(frozen=True)
class RolloutOptions:
    """How many completions are decoded at one time. Memory grows with rows · (prompt + slots · max_tokens)."""

    rows: int = 8  # prompts
    slots: int = 8  # completions of each; further ones begin where another has ended

    def __post_init__(self) -> None:
        for name in ("rows", "slots"):
            if getattr(self, name) < 1:
                raise ConfigError(f"rollout.{name}={getattr(self, name)} must be at least 1")


@dataclass
class _Running:
    """A slot at work."""

    sample: int
    start: int  # column of its first token
    searched: int = 0  # tokens known to hold no stop string
    stopped: bool = False  # by one


@dataclass
class _Row:
    """A prompt, its samples that have no slot yet, and those that do."""

    prompt: int
    waiting: list[int]
    running: dict[int, _Running] = field(default_factory=dict)  # by slot


class Engine:
    """Decodes completions of prompts with one model shape; compiled once for each bucket of prompt lengths.

    What a sample draws depends on the seed, the prompt's id and the sample's number alone, but for the rounding of
    products, whatever else is decoded beside it.
    """

    def __init__(
        self,
        config: ModelConfig,
        tokenizer: ChatTokenizer,
        sampling: SamplingOptions,
        options: RolloutOptions,
        batch: BatchOptions,
        banned: Iterable[int] = (),
    ):
        """`batch` gives the length buckets of prompts; `banned` are further tokens that are never drawn."""
        self.config, self.sampling, self.options, self.tokenizer = config, sampling, options, tokenizer
        self.seconds = {"prefill": 0.0, "decode_tokens": 0.0}  # spent so far
        self._batch = replace(batch, batch_size=1)
        self._static = traced_options(sampling)
        self._banned = jax.device_put(banned_tokens(config, tokenizer.length, banned))

    def sample(
        self, params: Any, prompts: Sized[Sequence], features: Sized[np.ndarray], group: int, seed: int
    ) -> list[list[Rollout]]:
        """`group` completions of every prompt; `features` as `VisualFeatures.of` gives them; `seed` uint32."""
        buckets: dict[int, list[int]] = {}
        for number, prompt in enumerate(prompts):
            buckets.setdefault(length_bucket(prompt.length, self._batch), []).append(number)
        done: list[dict[int, Rollout]] = [{} for _ in prompts]
        for numbers in buckets.values():
            for number, sample, completion in self._bucket(params, prompts, features, numbers, group, seed):
                done[number][sample] = completion
        return [[of_prompt[sample] for sample in range(group)] for of_prompt in done]

    def _bucket(self, params, prompts, features, numbers, group, seed) -> Iterator[tuple[int, int, Rollout]]:
        """(prompt, sample, completion) as they end."""
        slots, column, waiting = None, 0, list(numbers)
        rows: list[_Row | None] = [None] * min(self.options.rows, len(numbers))
        width = min(self.options.slots, group)
        while True:
            for index, row in enumerate(rows):
                if row is None and waiting:
                    number = waiting.pop(0)
                    slots = self._place(params, slots, prompts[number], features[number], index, (len(rows), width))
                    rows[index] = _Row(number, list(range(group)))
            if not any(rows):
                return
            slots = self._begin(slots, rows, [zlib.crc32(prompt.id.encode()) for prompt in prompts], seed, column)
            slots, drawn = self._decode(params, slots, rows, bool(waiting) or any(row and row.waiting for row in rows))
            column = drawn.column
            for index, row in enumerate(rows):
                for slot in [] if row is None else [slot for slot in row.running if not drawn.active[index, slot]]:
                    running = row.running.pop(slot)
                    yield row.prompt, running.sample, self._completion(drawn, index, slot, running)
                if row and not row.running and not row.waiting:
                    rows[index] = None

    def _place(self, params, slots: Slots | None, prompt: Sequence, features, index: int, shape) -> Slots:
        """Read a prompt into a row; into the first of new slots where there are none yet."""
        begun = time.perf_counter()
        batch, joined = with_features([prompt], [features], self._batch, self.config)
        prompts = read(params, self.config, batch, joined)
        if slots is None:
            slots = empty_slots(prompts, self.config, *shape, self._static.max_tokens)
        slots = place(slots, prompts, np.array([index], np.int32))
        self.seconds["prefill"] += time.perf_counter() - begun
        return slots

    def _begin(self, slots: Slots, rows: Sized[_Row | None], names: Sized[int], seed: int, column: int) -> Slots:
        """Give waiting samples the free slots of their rows."""
        shape = slots.active.shape
        fresh, seeds = np.zeros(shape, bool), np.zeros((*shape, 2), np.uint32)
        for index, row in enumerate(rows):
            free = [] if row is None else [slot for slot in range(shape[1]) if slot not in row.running]
            for slot in free[: len(row.waiting) if row else 0]:
                sample = row.waiting.pop(0)
                row.running[slot] = _Running(sample, column)
                fresh[index, slot], seeds[index, slot] = True, (names[row.prompt], sample)
        return begin(slots, fresh, seeds, np.uint32(seed)) if fresh.any() else slots

    def _decode(self, params, slots: Slots, rows: Sized[_Row | None], more: bool) -> tuple[Slots, "_Drawn"]:
        """Up to some tokens of every slot; while more is waiting, until a quarter of the slots is free."""
        begun = time.perf_counter()
        running = sum(len(row.running) for row in rows if row)
        enough = running - -(-running // 4) if more else 0
        steps = STOP_CHECK_INTERVAL if self.sampling.stop else self._static.max_tokens
        limits = map(np.int32, (self.sampling.max_tokens, steps, enough))
        slots = decode(params, self.config, slots, self._static, self._banned, *limits)
        kept = slots.tokens, slots.log_probs, slots.entropies, slots.lengths, slots.active, slots.cache.column
        drawn = _Drawn(*map(np.array, jax.device_get(kept)))
        if self.sampling.stop:
            self._end_at_stop(drawn, rows)
            slots = slots.replace(active=jax.device_put(drawn.active, slots.active.sharding))
        self.seconds["decode_tokens"] += time.perf_counter() - begun
        return slots, drawn

    def _end_at_stop(self, drawn: "_Drawn", rows: Sized[_Row | None]) -> None:
        """End, in `drawn`, the completions whose text holds a stop string."""
        decode_text = self.tokenizer.decode
        for index, row in enumerate(rows):
            for slot, running in row.running.items() if row else ():
                tokens = drawn.of(drawn.tokens, index, slot, running.start)
                stopped = length_at_stop(tokens, running.searched, self.sampling.stop, decode_text)
                running.searched = len(tokens)
                if stopped is not None:
                    drawn.lengths[index, slot], drawn.active[index, slot] = stopped, False
                    running.stopped = True

    def _completion(self, drawn: "_Drawn", index: int, slot: int, running: _Running) -> Rollout:
        tokens, log_probs, entropies = (
            drawn.of(x, index, slot, running.start) for x in (drawn.tokens, drawn.log_probs, drawn.entropies)
        )
        finished = running.stopped or tokens[-1] in self.config.tokens.eos
        return Rollout(tokens, log_probs, entropies, bool(finished))


@dataclass(frozen=True)
class _Drawn:
    """What slots have drawn, on the host; arrays as in `Slots`."""

    tokens: np.ndarray
    log_probs: np.ndarray
    entropies: np.ndarray
    lengths: np.ndarray
    active: np.ndarray
    column: np.ndarray

    def of(self, values: np.ndarray, row: int, slot: int, start: int) -> np.ndarray:
        """The values of one completion, which begins at column `start` and may go on from the first one."""
        return np.take(values[row, slot], start + np.arange(self.lengths[row, slot]), mode="wrap")
