"""What a file of records would give a run: usable rows, problems, and how long its sequences get."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from jvlmm.data.example import Example
from jvlmm.data.processor import Processor, decode_patches
from jvlmm.data.prompts import render
from jvlmm.data.records import read_records
from jvlmm.data.rejections import Rejected, attempted
from jvlmm.models.config import VisionConfig
from jvlmm.video.budget import PixelOptions
from jvlmm.video.sampling import FrameOptions
from jvlmm.video.workers import Decoder

Measured = tuple[int | None, int]  # tokens of the sequence where a tokenizer is known, visual tokens among them


def data_check(path: str | Path, processor: Processor | None = None, num_threads: int = 2) -> dict[str, Any]:
    """Read every row of a file of records, open all its media and process it as a run would.

    Without `processor` media are opened with the default frames and pixels and no tokens are counted.
    Returns JSON-ready `examples` (rows), `usable`, `problems` [{id, reason}] and histograms `tokens` and
    `visual_tokens`. Raises DataError when the file cannot be opened.
    """
    records = read_records(path)
    if processor is None:
        with Decoder(workers=num_threads) as decoder:
            outcomes = _measure_all(records.examples, partial(_open_media, decoder), num_threads)
    else:
        outcomes = _measure_all(records.examples, partial(_process, processor), num_threads)
    problems = [*records.rejected, *(outcome for outcome in outcomes if isinstance(outcome, Rejected))]
    measured = [outcome for outcome in outcomes if not isinstance(outcome, Rejected)]
    return {
        "path": str(path),
        "examples": len(records.examples) + len(records.rejected),
        "usable": len(measured),
        "problems": [{"id": problem.id, "reason": problem.reason} for problem in problems],
        "tokens": histogram(tokens for tokens, _ in measured if tokens is not None),
        "visual_tokens": histogram(visual for _, visual in measured),
    }


def histogram(sizes: Iterable[int]) -> dict[str, int]:
    """Number of sizes up to each power of two, above the one before: {"64": 3, "128": 1}; "0" counts zeros."""
    bounds = [0 if size == 0 else 1 << (size - 1).bit_length() for size in sizes]
    return {str(bound): int(count) for bound, count in zip(*np.unique(bounds, return_counts=True), strict=True)}


def _measure_all(
    examples: Iterable[Example], measure: Callable[[Example], Measured], num_threads: int
) -> list[Measured | Rejected]:
    with ThreadPoolExecutor(num_threads) as threads:
        return list(threads.map(partial(attempted, work=measure), examples))


def _process(processor: Processor, example: Example) -> Measured:
    sequence = processor.prompt(example) if example.response is None else processor.training(example)
    return sequence.length, int((sequence.visual_index >= 0).sum())


def _open_media(decoder: Decoder, example: Example) -> Measured:
    render(example)
    vision = VisionConfig()
    patches = [decode_patches(m, decoder, FrameOptions(), PixelOptions(), vision) for m in example.media]
    return None, sum(len(p.pixels) for p in patches) // vision.spatial_merge_size**2
