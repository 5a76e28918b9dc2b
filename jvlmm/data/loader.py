"""Examples → batches: shuffled, processed in threads, grouped by bucket, prepared ahead of the device."""

from collections.abc import Callable, Iterator
from collections.abc import Sequence as Sized
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grain

from jvlmm.data.batch import Batch, BatchOptions, check_fits
from jvlmm.data.example import Example
from jvlmm.data.fingerprint import check_same_data, data_fingerprint
from jvlmm.data.grouping import GroupedBatches
from jvlmm.data.processor import Processor
from jvlmm.data.rejections import Rejected, Rejections, attempted
from jvlmm.data.sequence import Sequence
from jvlmm.data.share import Share
from jvlmm.errors import ConfigError, DataError
from jvlmm.models.config import ModelConfig


@dataclass(frozen=True)
class PipelineOptions:
    """Host-side parallelism, of each process."""

    num_threads: int | None = None  # that process examples; None: one more than the decoder has processes, or two
    read_ahead: int | None = None  # examples processed before they are needed; None: those of two steps
    prefetch: int = 2  # batches collated before they are needed
    shuffle: bool = True

    def __post_init__(self) -> None:
        given = [number for number in (self.num_threads, self.read_ahead) if number is not None]
        if any(number < 1 for number in given) or self.prefetch < 0:
            raise ConfigError(
                f"pipeline.num_threads={self.num_threads}, read_ahead={self.read_ahead}, prefetch={self.prefetch}: "
                "need num_threads >= 1, read_ahead >= 1, prefetch >= 0"
            )

    def read_options(self, workers: int, step: int) -> grain.ReadOptions:
        """For a decoder of so many processes, and steps of so many examples. The order is the same for all numbers."""
        threads = self.num_threads or max(workers + 1, 2)
        return grain.ReadOptions(
            num_threads=threads, prefetch_buffer_size=self.read_ahead or max(2 * step, 2 * threads, 16)
        )


DEFAULT_PIPELINE = PipelineOptions()


class Loader:
    """Iterator of (Batch, ids of its examples). Close it, or use it as a context manager, to stop its threads."""

    def __init__(
        self,
        batches: grain.DatasetIterator,
        rejections: Rejections,
        fingerprint: dict[str, Any],
        share: Share | None = None,
    ):
        self.rejections = rejections
        self._share = share
        self._open: grain.DatasetIterator | None = batches
        self._fingerprint = fingerprint

    def __iter__(self) -> "Loader":
        return self

    @property
    def _batches(self) -> grain.DatasetIterator:
        if self._open is None:
            raise ValueError("the loader is closed")
        return self._open

    def __next__(self) -> tuple[Batch, tuple[str, ...]]:
        grouped = next(self._batches)
        return grouped.batch, grouped.ids

    def get_state(self) -> dict[str, Any]:
        """JSON-able position after the batch last handed out, whatever has been prepared beyond it."""
        return {"data": self._fingerprint, "batches": self._batches.get_state()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue with exactly the batches that followed `state`. DataError when it belongs to other data."""
        check_same_data(state["data"], self._fingerprint)
        self._interrupt()
        self._batches.set_state(state["batches"])

    def close(self) -> None:
        """Stop the background threads."""
        self._interrupt()
        if self._open is not None:
            self._open.close()
        self._open = None  # left to the interpreter's end, grain's iterator complains on stderr

    def _interrupt(self) -> None:
        """Let no thread wait for other processes, which may have ended theirs already."""
        if self._share:
            self._share.exchange.interrupt()

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def make_loader(
    examples: Sized[Example],
    processor: Processor,
    options: BatchOptions,
    seed: int,
    epochs: int | None = None,
    rejected_path: str | Path | None = None,
    pipeline: PipelineOptions = DEFAULT_PIPELINE,
    share: Share | None = None,
) -> Loader:
    """Training batches over `epochs` (None: without end), another order in each, the same for the same seed.

    Buckets fill across epochs; what is left at the very end comes as short batches, so that no example
    is lost. An example that cannot be prepared, whatever it raises, is left out, counted once, and listed in
    `rejected_path`.
    With several processes, each has a `share`: all go through the same batches in step, equal in shape, with the
    same examples as one process alone, and each gets the rows that its devices hold.

    Raises DataError for an empty dataset, and while iterating when a whole epoch holds no usable example.
    """
    if not len(examples):
        raise DataError("the dataset holds no examples; check its path and split")
    stream = grain.MapDataset.source(examples)
    if pipeline.shuffle:
        stream = stream.shuffle(seed=seed)
    stream = stream.repeat(epochs)
    if share:
        options = replace(options, held=share.parts[share.mine])
    rejections = Rejections(rejected_path)
    batches = _grouped(
        stream,
        processor.training,
        options,
        config=processor.config,
        rejections=rejections,
        pipeline=pipeline,
        workers=processor.workers,
        epoch=len(examples),
        share=share,
    )
    fingerprint = {"examples": len(examples), "seed": seed, "files": data_fingerprint(examples)}
    return Loader(iter(batches), rejections, fingerprint, share)


def eval_batches(
    examples: Sized[Example],
    process: Callable[[Example], Sequence],
    options: BatchOptions,
    config: ModelConfig,
    rejections: Rejections,
    pipeline: PipelineOptions = DEFAULT_PIPELINE,
    workers: int = 1,
) -> Iterator[tuple[Batch, tuple[int, ...]]]:
    """Every example once, as (Batch, indices into `examples` of its rows); the last of a bucket comes short.

    `process` is `Processor.prompt` or `Processor.training`, whose decoder has so many `workers`. Examples it refuses
    are found in `rejections`.
    Raises ConfigError for packed batches, whose rows are not those of single examples.
    """
    if options.pack:
        raise ConfigError("batch.pack=True is for training; evaluation and generation need a row for each example")
    if not len(examples):
        return
    stream = grain.MapDataset.source(examples)
    batches = iter(
        _grouped(
            stream,
            process,
            options,
            config=config,
            rejections=rejections,
            pipeline=pipeline,
            workers=workers,
            epoch=len(examples) + 1,
        )
    )
    try:
        for grouped in batches:
            yield grouped.batch, grouped.positions
    finally:
        batches.close()


def _grouped(
    stream: grain.MapDataset,
    process: Callable[[Example], Sequence],
    options: BatchOptions,
    config: ModelConfig,
    rejections: Rejections,
    pipeline: PipelineOptions,
    workers: int,
    epoch: int,
    share: Share | None = None,
) -> grain.IterDataset:
    """Grain's threads keep the order of the stream; batches are collated in one more thread after them."""

    def prepare(example: Example) -> Sequence:
        sequence = process(example)
        check_fits(sequence, options)
        return sequence

    def attempt(example: Example) -> Sequence | Rejected:
        return attempted(example, prepare)

    read = pipeline.read_options(workers, options.batch_size)
    batches = GroupedBatches(stream.map(attempt), read, options, config, rejections, epoch, share)
    return grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=pipeline.prefetch)
