"""What stages read: data sets by path, and a model folder with what turns examples into its input."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import jax

from jvlmm.data.concatenation import Concatenation
from jvlmm.data.moving_shapes import caption_examples, direct, load
from jvlmm.data.processor import Processor, ProcessorOptions
from jvlmm.data.prompts import Style
from jvlmm.data.records import read_examples
from jvlmm.data.tokenizer import ChatTokenizer
from jvlmm.errors import ConfigError
from jvlmm.models.config import ModelConfig
from jvlmm.models.huggingface import load_config
from jvlmm.recipes.recipe import Run
from jvlmm.video.budget import PixelOptions
from jvlmm.video.limits import Limits
from jvlmm.video.sampling import FrameOptions
from jvlmm.video.workers import Decoder


@dataclass(frozen=True)
class Source:
    """Examples of one split of a Moving Shapes folder, or of one neutral JSONL file.

    `view` chooses what is to be learnt: the reasoned `response` of a row, its bare `answer`, or the
    `captions` of its scene (the last only of Moving Shapes). `repeat` makes a source weigh more.
    """

    path: str  # or stage:NAME
    split: str = "train"
    view: Literal["response", "answer", "captions"] = "response"
    question_types: tuple[str, ...] = ()  # () takes all
    limit: int | None = None
    repeat: int = 1


@dataclass(frozen=True)
class VisionOptions:
    """How media are read and how much of them the model sees."""

    frames: FrameOptions = field(default_factory=FrameOptions)
    pixels: PixelOptions = field(default_factory=PixelOptions)
    limits: Limits = field(default_factory=Limits)
    workers: int = 1  # decoding processes; 0 decodes in this one, for files that are trusted
    cache_bytes: int = 0  # host memory for patches of files read again
    patch_buckets: tuple[int, ...] = ()  # patches of a batch; (): as many as there are
    fold: bool = False  # all media are of one size: attention needs no gathers


def open_source(run: Run, source: Source) -> Concatenation:
    """The examples of one source: random access, in a fixed order."""
    path = run.resolve(source.path)
    if source.repeat < 1:
        raise ConfigError(f"source {source.path!r}: repeat={source.repeat} must be at least 1")
    if not path.is_dir():
        if source.view == "captions" or source.question_types:
            raise ConfigError(f"{path}: view='captions' and question_types are for a Moving Shapes folder only")
        rows = read_examples(path, run.workdir / "rejected.jsonl")[: source.limit]
    elif source.view == "captions":
        rows = caption_examples(path, source.split, limit=source.limit)
    else:
        rows = load(path, source.split, question_types=source.question_types or None, limit=source.limit)
    if source.view == "answer":
        return Concatenation([rows] * source.repeat, change=direct)
    return Concatenation([rows] * source.repeat)


def open_sources(run: Run, sources: tuple[Source, ...]) -> Concatenation:
    """All sources one after another. ConfigError where none is given."""
    if not sources:
        raise ConfigError("no sources: name at least one folder or JSONL file to read examples from")
    return Concatenation([open_source(run, source) for source in sources])


def executed(config: ModelConfig, remat: str = "none") -> ModelConfig:
    """The configuration as this platform runs it best: on CPU unrolled and in float32, elsewhere scanned and in bfloat16."""
    on_cpu = jax.default_backend() == "cpu"
    return replace(
        config,
        scan_layers=not on_cpu,
        flatten_tokens=on_cpu,
        dtype="float32" if on_cpu else "bfloat16",
        param_dtype="float32",
        remat=remat,
    )


@contextmanager
def open_processor(
    folder: Path, style: Style, vision: VisionOptions, max_length: int, remat: str = "none"
) -> Iterator[Processor]:
    """The processor of a model folder, with its decoding processes, which end with the context."""
    config = executed(load_config(folder), remat)
    options = ProcessorOptions(
        style=style, frames=vision.frames, pixels=vision.pixels, max_length=max_length, cache_bytes=vision.cache_bytes
    )
    with Decoder(workers=vision.workers, limits=vision.limits) as decoder:
        yield Processor(ChatTokenizer.from_pretrained(folder), config, options, decoder)


