"""What a file of records would give a run: usable rows, problems, and how long its sequences get."""

import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from jvlmm.data.example import Example
from jvlmm.data.processor import Processor, decode_patches
from jvlmm.data.prompts import Style, media_in_order, render
from jvlmm.data.records import read_records
from jvlmm.data.rejections import Rejected, attempted
from jvlmm.models.config import VisionConfig
from jvlmm.video.budget import PixelOptions
from jvlmm.video.fitting import FitOptions, affordable_plan
from jvlmm.video.limits import DEFAULT_LIMITS, Limits
from jvlmm.video.sampling import FrameOptions
from jvlmm.video.workers import Decoder

_NAMED = 5  # ids of a group of reasons
_MAY_LACK = ("media", "options", "response", "hint", "system", "earlier", "coordinates")
_VARIES = re.compile(r"'[^']*'|\"[^\"]*\"|/\S+|[\d.]+")

Measured = tuple[int | None, int]  # tokens of the sequence where a tokenizer is known, visual tokens among them


@dataclass(frozen=True)
class MediaOptions:
    """How a row is asked and its media are opened where no model says it."""

    style: Style = "direct"
    frames: FrameOptions = FrameOptions()
    pixels: PixelOptions = PixelOptions()
    limits: Limits = DEFAULT_LIMITS


DEFAULT_MEDIA = MediaOptions()


def data_check(
    path: str | Path,
    processor: Processor | None = None,
    num_threads: int = 2,
    rows: Sequence[Example | Rejected] | None = None,
    media: MediaOptions = DEFAULT_MEDIA,
    agrees: Callable[[Example], bool | None] = lambda example: True,
) -> dict[str, Any]:
    """Read every row of a file of records, open all its media and process it as a run would.

    Without `processor` media are opened as `media` says and no tokens are counted. `rows` are those of the file where
    they have been read already. `agrees` tells whether a row's response gives the row's answer, None where that answer
    is none of its type. Returns JSON-ready `examples` (rows), `usable`, of these the number `without_response` and the
    ids of those that `disagree`, of those that are `unscorable` and, by key and field, of those with `misspelt` keys,
    `problems` [{id, reason}], `reasons` (these grouped, see `grouped`) and histograms `tokens` and `visual_tokens`.
    Raises DataError when the file cannot be opened.
    """
    rows = read_records(path).rows if rows is None else rows
    examples = [row for row in rows if isinstance(row, Example)]
    if processor is None:
        with Decoder(workers=num_threads, limits=media.limits) as decoder:
            outcomes = _measure_all(examples, partial(_open_media, decoder, media), agrees, num_threads)
    else:
        outcomes = _measure_all(examples, partial(_process, processor), agrees, num_threads)
    refused = [outcome for outcome in outcomes if isinstance(outcome, Rejected)]
    problems = [*(row for row in rows if isinstance(row, Rejected)), *refused]
    usable = [
        (example, *outcome)
        for example, outcome in zip(examples, outcomes, strict=True)
        if not isinstance(outcome, Rejected)
    ]
    return {
        "path": str(path),
        "examples": len(rows),
        "usable": len(usable),
        "without_response": sum(not (example.response or "").strip() for example, *_ in usable),
        "disagree": [example.id for example, agreeing, _ in usable if agreeing is False],
        "unscorable": [example.id for example, agreeing, _ in usable if agreeing is None],
        "misspelt": misspelt(example for example, *_ in usable),
        "problems": [{"id": problem.id, "reason": problem.reason} for problem in problems],
        "reasons": grouped(problems),
        "tokens": histogram(tokens for *_, (tokens, _) in usable if tokens is not None),
        "visual_tokens": histogram(visual for *_, (_, visual) in usable),
    }


def grouped(problems: Iterable[Rejected]) -> list[dict[str, Any]]:
    """Returns [{"reason", "count", "ids"}], the most frequent first: a reason of each kind, and the first ids of it.

    Reasons are of one kind where they differ in ids, places, numbers and quoted texts only.
    """
    kinds: dict[str, list[Rejected]] = {}
    for problem in problems:
        reason = problem.reason.removeprefix(f"{problem.id}: ")
        own_id = rf"(?<!\w){re.escape(problem.id)}(?!\w)"  # not the digit 2 of "420 tokens" in a row called 2
        kinds.setdefault(_VARIES.sub("#", re.sub(own_id, "#", reason)), []).append(problem)
    return [
        {"reason": of_kind[0].reason, "count": len(of_kind), "ids": [problem.id for problem in of_kind[:_NAMED]]}
        for of_kind in sorted(kinds.values(), key=len, reverse=True)
    ]


def misspelt(examples: Iterable[Example]) -> dict[str, list[str]]:
    """Returns {"medai (media?)": ids}: keys of rows that look like a field which the same row lacks.

    A row keeps keys that are no fields in its `meta`, so that a misspelt one is a field left away.
    """
    found: dict[str, list[str]] = {}
    for example in examples:
        for key in example.meta:
            field = _looks_like(key)
            if field is not None and not getattr(example, field):
                found.setdefault(f"{key} ({field}?)", []).append(example.id)
    return found


@cache  # the rows of a file have the same few keys
def _looks_like(key: str) -> str | None:
    return next(iter(difflib.get_close_matches(key, _MAY_LACK, n=1, cutoff=0.8)), None)


def histogram(sizes: Iterable[int]) -> dict[str, int]:
    """Number of sizes up to each power of two, above the one before: {"64": 3, "128": 1}; "0" counts zeros."""
    bounds = [0 if size == 0 else 1 << (size - 1).bit_length() for size in sizes]
    return {str(bound): int(count) for bound, count in zip(*np.unique(bounds, return_counts=True), strict=True)}


def _measure_all(
    examples: Iterable[Example],
    measure: Callable[[Example], Measured],
    agrees: Callable[[Example], bool | None],
    num_threads: int,
) -> list[tuple[bool | None, Measured] | Rejected]:
    """Of each example whether its response agrees, and its sizes."""
    with ThreadPoolExecutor(num_threads) as threads:
        work = partial(attempted, work=lambda example: (agrees(example), measure(example)))
        return list(threads.map(work, examples))


def _process(processor: Processor, example: Example) -> Measured:
    sequence = processor.prompt(example) if example.response is None else processor.training(example)
    return sequence.length, int((sequence.visual_index >= 0).sum())


def _open_media(decoder: Decoder, options: MediaOptions, example: Example) -> Measured:
    shown = media_in_order(example, render(example, options.style))
    vision = VisionConfig()
    patches = []
    for media in shown:
        frames, pixels = options.frames, options.pixels
        if media.type == "video":  # of a long one no more frames are opened than a run would take
            most = FitOptions().most_decoded
            measured = decoder.measure_video(media.path, frames, media.start, media.end, most_decoded=most)
            frames = affordable_plan(measured, pixels).frame_options(frames)
        patches.append(decode_patches(media, decoder, frames, pixels, vision))
    return None, sum(len(p.pixels) for p in patches) // vision.spatial_merge_size**2
