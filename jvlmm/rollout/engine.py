"""Several completions of every prompt: the prompt is read once, and slots are refilled as they fall free."""

import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as Sized
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from jax.sharding import Mesh

from jvlmm.data.batch import BatchOptions, length_bucket
from jvlmm.data.groups import Rollout, with_features
from jvlmm.data.sequence import Sequence
from jvlmm.data.tokenizer import ChatTokenizer
from jvlmm.errors import ConfigError
from jvlmm.models.config import ModelConfig
from jvlmm.rollout.generate import STOP_CHECK_INTERVAL, length_at_stop, traced_options
from jvlmm.rollout.groups import Slots, begin, decode, empty_slots, place, read
from jvlmm.rollout.queues import Asked, Queues
from jvlmm.rollout.sampling import SamplingOptions, banned_tokens
from jvlmm.sharding.batches import Devices, fetched, placed
from jvlmm.sharding.mesh import MeshOptions

_WAITING = 4  # prompts of other buckets that may wait, times the rows


@dataclass(frozen=True)
class RolloutOptions:
    """How many completions are decoded at one time. Memory grows with rows · (prompt + slots · max_tokens)."""

    rows: int = 8  # prompts
    slots: int = 8  # completions of each; further ones begin where another has ended
    mesh: MeshOptions | None = None  # of the devices that decode; None: as they are trained on

    def __post_init__(self) -> None:
        for name in ("rows", "slots"):
            if getattr(self, name) < 1:
                raise ConfigError(f"rollout.{name}={getattr(self, name)} must be at least 1")

    def check_readers(self, readers: int) -> None:
        """Raises ConfigError where the rows do not divide over so many groups of devices."""
        if self.rows % readers:
            raise ConfigError(
                f"rollout.rows={self.rows} do not divide over the {readers} groups of devices that read and decode "
                "them; use a multiple, or fewer devices along data and fsdp of rollout.mesh"
            )


class Engine:
    """Decodes completions of prompts with one model shape.

    Compiled for each bucket of prompt lengths, with 1, 2, 4, … or `options.rows` rows as there are prompts. On a mesh
    its devices share the rows, each group of them reads prompts for rows of its own, and `tensor` splits the model.

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
        mesh: Mesh | None = None,
    ):
        """`batch` gives the buckets of one prompt, `banned` further tokens that are never drawn.

        The seed of `sampling` has no part here. With a `mesh` of several devices `config.rules` says what they share;
        ConfigError where they do not divide the rows.
        """
        self.config, self.sampling, self.options, self.tokenizer = config, sampling, options, tokenizer
        self.seconds = {"prefill": 0.0, "decode_tokens": 0.0}  # spent so far
        self.devices = Devices.of(mesh, config.rules)
        self.readers = self.devices.shards[0]  # prompts read at one time
        options.check_readers(self.readers)
        self.batch = for_readers(batch, self.readers)
        self.banned = self.devices.put_whole(banned_tokens(config, tokenizer.length, banned))

    def sample(
        self, params: Any, prompts: Sized[Sequence], features: Sized[np.ndarray], group: int | Sized[int], seed: int
    ) -> list[list[Rollout]]:
        """`group` completions of every prompt, or of each its own number.

        `features` as `VisualFeatures.of` gives them; `seed` uint32.
        """
        done: list[dict[int, Rollout]] = [{} for _ in prompts]
        sizes = [group] * len(prompts) if isinstance(group, int) else group
        asked = (Asked(n, *of) for n, of in enumerate(zip(prompts, features, sizes, strict=True)))
        each = -(-len(prompts) // self.readers)
        rows = min(self.readers << (each - 1).bit_length(), self.options.rows)
        for number, sample, rollout in self.stream(params, asked, seed, rows):
            done[number][sample] = rollout
        return [[of[sample] for sample in range(size)] for of, size in zip(done, sizes, strict=True)]

    def stream(
        self, params: Any, asked: Iterable[Asked], seed: int, rows: int | None = None
    ) -> Iterator[tuple[int, int, Rollout]]:
        """(number of the prompt, number of the sample, rollout) as they end, of prompts that are read as needed.

        `rows`: prompts at work at one time, by default those of the options.
        """
        rows = self.options.rows if rows is None else rows
        bucket_of = lambda asked: length_bucket(asked.sequence.length, self.batch)  # noqa: E731
        queues = Queues(iter(asked), bucket_of, _WAITING * rows)
        while (bucket := queues.next_bucket()) is not None:
            yield from _Pool(self, params, rows, seed).run(partial(queues.take, bucket))


def for_readers(batch: BatchOptions, readers: int) -> BatchOptions:
    """The shapes in which so many prompts are read, each by devices of its own; `batch` has those of one prompt."""
    sizes = tuple(size * readers for size in batch.patch_buckets)
    return replace(batch, batch_size=readers, patch_buckets=sizes, shards=readers, parts=1)


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

    asked: Asked
    waiting: list[int]
    running: dict[int, _Running] = field(default_factory=dict)  # by slot


class _Pool:
    """The slots of one bucket, on the device, and what the host knows of them."""

    def __init__(self, engine: Engine, params: Any, rows: int, seed: int):
        self._engine, self._params, self._seed = engine, params, np.uint32(seed)
        self._rows: list[_Row | None] = [None] * rows
        self._static = traced_options(engine.sampling)
        self._slots: Slots | None = None
        self._column = 0

    def run(self, take: Callable[[], Asked | None]) -> Iterator[tuple[int, int, Rollout]]:
        """Until `take` has nothing left and all completions have ended; see `Engine.stream`."""
        more = True
        while True:
            while more and (idle := self._idle_rows()):
                fresh = {}
                for index in idle:
                    asked = take()
                    if asked is None:
                        more = False
                        break
                    fresh[index] = asked
                self._place(fresh)
            if not any(self._rows):
                return
            self._begin()
            drawn = self._decode(more or any(row and row.waiting for row in self._rows))
            for index, row in enumerate(self._rows):
                for slot in [] if row is None else [slot for slot in row.running if not drawn.active[index, slot]]:
                    running = row.running.pop(slot)
                    yield row.asked.number, running.sample, self._rollout(drawn, index, slot, running)
                if row and not row.running and not row.waiting:
                    self._rows[index] = None

    def _idle_rows(self) -> list[int]:
        """One row without a prompt of each reader that has one."""
        length = len(self._rows) // self._engine.readers
        runs = [range(start, start + length) for start in range(0, len(self._rows), length)]
        idle = [next((index for index in run if self._rows[index] is None), None) for run in runs]
        return [index for index in idle if index is not None]

    def _place(self, fresh: dict[int, Asked]) -> None:
        """Read prompts into rows, at most one of each reader."""
        if not fresh:
            return
        begun, engine = time.perf_counter(), self._engine
        length = len(self._rows) // engine.readers
        readers, rows = [index // length for index in fresh], np.full(engine.readers, -1, np.int32)
        rows[readers] = [index % length for index in fresh]
        sequences, features = zip(*((asked.sequence, asked.features) for asked in fresh.values()), strict=True)
        given = with_features(sequences, features, engine.batch, engine.config, readers)
        with engine.devices.in_use():
            penalized = bool(self._static.penalties)
            prompts = read(self._params, engine.config, *engine.devices.put(given), penalized=penalized)
            if self._slots is None:
                width = min(engine.options.slots, max(asked.samples for asked in fresh.values()))
                columns = self._static.max_tokens
                self._slots = empty_slots(prompts, engine.config, len(self._rows), width, columns)
            self._slots = place(self._slots, engine.config, prompts, engine.devices.put(rows))
        for index, asked in fresh.items():
            self._rows[index] = _Row(asked, list(range(asked.samples)))
        engine.seconds["prefill"] += time.perf_counter() - begun

    def _begin(self) -> None:
        """Give waiting samples the free slots of their rows."""
        shape = self._slots.active.shape
        fresh, seeds = np.zeros(shape, bool), np.zeros((*shape, 2), np.uint32)
        for index, row in enumerate(self._rows):
            free = [] if row is None else [slot for slot in range(shape[1]) if slot not in row.running]
            for slot in free[: len(row.waiting) if row else 0]:
                sample = row.waiting.pop(0)
                row.running[slot] = _Running(sample, self._column)
                fresh[index, slot] = True
                seeds[index, slot] = zlib.crc32(row.asked.sequence.id.encode()), sample
        if fresh.any():
            engine = self._engine
            with engine.devices.in_use():
                self._slots = begin(self._slots, engine.config, *engine.devices.put((fresh, seeds)), self._seed)

    def _decode(self, more: bool) -> "_Drawn":
        """Some tokens of every slot; while more is waiting, until a quarter of the slots is free."""
        begun, engine = time.perf_counter(), self._engine
        running = sum(len(row.running) for row in self._rows if row)
        enough = running - -(-running // 4) if more else 0
        steps = STOP_CHECK_INTERVAL if engine.sampling.stop else self._static.max_tokens
        limits = map(np.int32, (engine.sampling.max_tokens, steps, enough))
        with engine.devices.in_use():
            slots = decode(self._params, engine.config, self._slots, self._static, engine.banned, *limits)
        kept = slots.tokens, slots.log_probs, slots.entropies, slots.lengths, slots.active, slots.cache.column
        drawn = _Drawn(*fetched(kept))
        if engine.sampling.stop:
            self._end_at_stop(drawn)
            slots = slots.replace(active=placed(drawn.active, slots.active.sharding))
        self._slots, self._column = slots, int(drawn.column)
        engine.seconds["decode_tokens"] += time.perf_counter() - begun
        return drawn

    def _end_at_stop(self, drawn: "_Drawn") -> None:
        """End, in `drawn`, the completions whose text holds a stop string."""
        engine = self._engine
        for index, row in enumerate(self._rows):
            for slot, running in row.running.items() if row else ():
                tokens = drawn.of(drawn.tokens, index, slot, running.start)
                stopped = length_at_stop(tokens, running.searched, engine.sampling.stop, engine.tokenizer.decode)
                running.searched = len(tokens)
                if stopped is not None:
                    drawn.lengths[index, slot], drawn.active[index, slot] = stopped, False
                    running.stopped = True

    def _rollout(self, drawn: "_Drawn", index: int, slot: int, running: _Running) -> Rollout:
        tokens, log_probs, entropies = (
            drawn.of(x, index, slot, running.start) for x in (drawn.tokens, drawn.log_probs, drawn.entropies)
        )
        finished = running.stopped or tokens[-1] in self._engine.config.tokens.eos
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
