"""What stages read: data sets by path, and how their media are seen."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal, get_args

from jvlmm.data.batch import BatchOptions
from jvlmm.data.concatenation import Concatenation
from jvlmm.data.conversations import Conversations
from jvlmm.data.coordinates import Coordinates
from jvlmm.data.example import AnswerType, Example
from jvlmm.data.moving_shapes import (
    caption_examples,
    direct,
    explained,
    lettered,
    lettered_pairs,
    load,
    open_ended,
)
from jvlmm.data.positions import TextAfterMedia
from jvlmm.data.processor import ProcessorOptions
from jvlmm.data.processor_files import Processing, difference, processor_options
from jvlmm.data.prompts import Style
from jvlmm.data.records import read_records
from jvlmm.data.rejections import Rejected, Rejections, attempted
from jvlmm.errors import ConfigError
from jvlmm.recipes.recipe import Run
from jvlmm.sharding.hosts import process_index
from jvlmm.training.hindsight_writing import hinted
from jvlmm.video.budget import DEFAULT_PIXELS, PixelOptions
from jvlmm.video.fitting import FitOptions
from jvlmm.video.limits import Limits
from jvlmm.video.overrides import FrameOverrides, PixelOverrides, overriding_pixels
from jvlmm.video.sampling import FrameOptions
from jvlmm.video.workers import Decoder

View = Literal["response", "answer", "open", "explained", "hinted", "lettered", "lettered_pairs", "captions"]

_CHANGES = {  # of a row, by view
    "answer": direct,
    "open": open_ended,
    "explained": explained,
    "hinted": hinted,
    "lettered": lettered,
    "lettered_pairs": lettered_pairs,
}


@dataclass(frozen=True)
class Source:
    """Examples of one split of a Moving Shapes folder, or of one neutral JSONL file.

    `view` chooses what is to be learnt: the reasoned `response` of a row, its bare `answer`, the answer to the `open`
    question without options, the answer `explained` by the thought as plain text, the `response` to the question
    `hinted` as a teacher with hindsight reads it, a `lettered` list of its options
    without the media, one of `lettered_pairs` of words, or the `captions` of its scene (the last two only of Moving
    Shapes). `turns` above 1 asks so many questions about the same media in one conversation. `repeat` makes a source
    weigh more. The media of a JSONL file lie in its folder, or in `root`: nothing outside is opened, links resolved.
    """

    path: str  # or stage:NAME
    split: str = "train"
    view: View = "response"
    question_types: tuple[str, ...] = ()  # or kinds of captions; () takes all
    answer_types: tuple[AnswerType, ...] = ()  # () takes all
    limit: int | None = None  # of what the types leave, rows that cannot be used included
    turns: int = 1
    repeat: int = 1
    coordinates: Coordinates | None = None  # of the boxes of rows that do not say; None: pixels of their files
    root: str = ""  # folder that holds the media; rows name them from there or from their file's folder
    name: str = ""  # for overrides such as sft.sources.NAME.path=…


@dataclass(frozen=True)
class CheckOptions:
    """How `jvlmm data check` reads a file: as a stage of these options would."""

    view: View = "response"
    answer_types: tuple[AnswerType, ...] = ()  # () takes all
    limit: int | None = None
    coordinates: Coordinates | None = None  # of the boxes of rows that do not say; None: pixels of their files
    style: Style | None = None  # of the prompts; None: as the checkpoint was trained, else think
    frames: FrameOverrides = field(default_factory=FrameOverrides)  # unset: as the checkpoint asks
    pixels: PixelOverrides = field(default_factory=PixelOverrides)  # unset: as the checkpoint asks
    limits: Limits = field(default_factory=Limits)
    fit: FitOptions = field(default_factory=FitOptions)  # what becomes of media too large for their row
    timestamps: str | None = None  # see ProcessorOptions; None: as the checkpoint asks
    text_after_media: TextAfterMedia | None = None  # see positions.mrope_positions; None: as the checkpoint asks
    answer_coordinates: Coordinates | None = None  # of the boxes in answers; None: as trained, else as the family does
    max_length: int = 8192  # tokens of a row


@dataclass(frozen=True)
class VisionOptions:
    """How media are read and how much of them the model sees."""

    frames: FrameOverrides | FrameOptions = field(default_factory=FrameOverrides)  # unset: as the checkpoint asks
    pixels: PixelOverrides | PixelOptions = field(default_factory=PixelOverrides)  # unset: as the checkpoint asks
    limits: Limits = field(default_factory=Limits)
    fit: FitOptions = field(default_factory=FitOptions)  # what becomes of media too large for their row
    coordinates: Coordinates | None = None  # of the boxes in answers; None: as trained, else as the family writes them
    timestamps: str | None = None  # see ProcessorOptions; None: as the checkpoint asks
    text_after_media: TextAfterMedia | None = None  # see positions.mrope_positions; None: as the checkpoint asks
    workers: int | None = None  # decoding processes; None: one a usable core; 0 decodes here, for files one trusts
    cache_bytes: int = 0  # host memory for patches of files read again
    patch_buckets: tuple[int, ...] = ()  # patches of a batch; (): see BatchOptions
    fold: bool = False  # all media are of one size: attention needs no gathers

    def decoder(self) -> Decoder:
        """The decoding processes, as a context manager."""
        return Decoder(workers=self.workers, limits=self.limits)

    def processor(
        self,
        style: Style,
        max_length: int,
        model_dir: Path,
        *,
        batch: BatchOptions | None = None,
        adapter: Path | None = None,
    ) -> ProcessorOptions:
        """As `shown`; where that is otherwise than the checkpoint asks, a line on stderr says so.

        With the shapes of a `batch` no row has more patches than its devices' share of the largest bucket.
        """
        options = self.shown(style, max_length, model_dir, adapter)
        told = difference(model_dir, options, adapter)
        if told and process_index() == 0:
            print(told, file=sys.stderr, flush=True)
        bounded = batch is not None and batch.patch_buckets
        return replace(options, max_patches=batch.patch_buckets[-1] // batch.shards) if bounded else options

    def shown(self, style: Style, max_length: int, model_dir: Path, adapter: Path | None = None) -> ProcessorOptions:
        """What turns examples into sequences of at most `max_length` tokens for that checkpoint.

        What is unset here is as the checkpoint asks, or the adapter that is merged into it.
        """
        further = {"fit": self.fit, "cache_bytes": self.cache_bytes}
        return processor_options(model_dir, style, max_length, Processing.set_by(self), adapter, **further)

    @property
    def frame_pixels(self) -> int:
        """The most pixels of a frame, for plans, which know no checkpoint."""
        return overriding_pixels(self.pixels, DEFAULT_PIXELS).video_max_pixels

    def batch(
        self, batch_size: int, length_buckets: tuple[int, ...], shards: int = 1, parts: int = 1, pack: bool = False
    ) -> BatchOptions:
        """The static shapes of batches on so many devices; see `BatchOptions`."""
        return BatchOptions(
            batch_size=batch_size,
            length_buckets=length_buckets,
            patch_buckets=self.patch_buckets,
            fold=self.fold,
            pack=pack,
            shards=shards,
            parts=parts,
        )


def open_source(run: Run, source: Source, rejections: Rejections) -> Concatenation:
    """The examples of one source: random access, in a fixed order; rows that are no examples go to `rejections`."""
    path = run.resolve(source.path)
    for name in ("repeat", "turns"):
        if getattr(source, name) < 1:
            raise ConfigError(f"source {source.path!r}: {name}={getattr(source, name)} must be at least 1")
    if source.view == "captions" and source.answer_types:
        raise ConfigError(f"{path}: captions are no answers; leave answer_types away, or choose another view")
    if not path.is_dir():
        if source.view == "captions" or source.question_types:
            raise ConfigError(f"{path}: view='captions' and question_types are for a Moving Shapes folder only")
        rows, keys = _records(path, source, run.resolve(source.root) if source.root else None, rejections), None
    else:
        if source.root:
            raise ConfigError(f"{path}: root={source.root!r} is for a JSONL file only; leave it away")
        rows = _moving_shapes(path, source)
        keys = rows.media_keys
        if source.coordinates is not None:
            rows = Concatenation([rows], change=partial(_in_coordinates, source.coordinates))
        if source.view in _CHANGES:
            rows = Concatenation([rows], change=_CHANGES[source.view])
    if source.turns > 1:
        rows = Conversations(rows, source.turns, run.seed, keys)
    return Concatenation([rows] * source.repeat)


def _in_coordinates(coordinates: Coordinates, example: Example) -> Example:
    """The example with its boxes in those coordinates, unless it names others itself."""
    return example if example.coordinates else replace(example, coordinates=coordinates)


def rows_of(path: Path, source: Source, root: Path | None) -> list[Example | Rejected]:
    """Returns the rows of a JSONL file that the source wants, under its view, in the file's order."""
    wanted = source.answer_types or get_args(AnswerType)
    rows = [row for row in read_records(path, root).rows if isinstance(row, Rejected) or row.answer_type in wanted]
    rows = rows[: source.limit]
    if source.coordinates is not None:
        named = partial(_in_coordinates, source.coordinates)
        rows = [row if isinstance(row, Rejected) else named(row) for row in rows]
    change = _CHANGES.get(source.view)
    return rows if change is None else [row if isinstance(row, Rejected) else attempted(row, change) for row in rows]


def _records(path: Path, source: Source, root: Path | None, rejections: Rejections) -> list[Example]:
    """The usable ones of `rows_of`; the others go to `rejections`, once a repetition."""
    rows = rows_of(path, source, root)
    for rejected in (row for row in rows if isinstance(row, Rejected)):
        for _ in range(source.repeat):
            rejections.add(rejected)
    return [row for row in rows if isinstance(row, Example)]


def _moving_shapes(path: Path, source: Source) -> Sequence[Example]:
    if source.view == "captions":
        return caption_examples(path, source.split, source.question_types or None, limit=source.limit)
    types, forms = source.question_types or None, source.answer_types or None
    return load(path, source.split, question_types=types, answer_types=forms, limit=source.limit)


def open_sources(run: Run, sources: tuple[Source, ...], rejections: Rejections) -> Concatenation:
    """All sources one after another; see `open_source`. ConfigError where none is given."""
    if not sources:
        raise ConfigError("no sources: name at least one folder or JSONL file to read examples from")
    return Concatenation([open_source(run, source, rejections) for source in sources])
