"""Sequences → one batch of static shape."""

from collections.abc import Hashable
from collections.abc import Sequence as Sized
from dataclasses import dataclass, replace

import flax.struct
import jax
import numpy as np

from jvlmm.data.sequence import Sequence
from jvlmm.errors import ConfigError, DataError
from jvlmm.models.config import ModelConfig
from jvlmm.models.vision_inputs import (
    VisionBuckets,
    VisionInputs,
    abstract_vision_inputs,
    build_vision_inputs,
    build_vision_shards,
)
from jvlmm.video.clip import Patches


@flax.struct.dataclass
class Batch:
    """What a step takes. Rows are right-padded; a short batch ends in rows that are padding throughout."""

    tokens: np.ndarray  # int32 [B, L]
    positions: np.ndarray  # int32 [B, 3, L], 0 on padding
    segment_ids: np.ndarray  # int32 [B, L], 1 on tokens, 0 on padding
    loss_mask: np.ndarray  # bool [B, L], True on the tokens to learn (each predicted from the one before it)
    visual_index: np.ndarray  # int32 [B, L], row of the tower's output in the row's shard, -1 on text and padding
    vision: VisionInputs | None  # all media of the batch, by shard where there are several; None where no row has any


@dataclass(frozen=True)
class BatchOptions:
    """The static shapes batches come in; every combination that occurs is compiled once."""

    batch_size: int = 8  # rows, of all processes together
    length_buckets: tuple[int, ...] = ()  # tokens of a row, padding included; (): powers of two from 64
    patch_buckets: tuple[int, ...] = ()  # patches of a batch, padding included; (): exactly as many as there are
    frame_patches: tuple[int, ...] = ()  # patches of a frame; (): powers of two
    fold: bool = False  # only rows with media of equal sizes share a batch, whose attention needs no gathers then
    shards: int = 1  # so many devices split the rows; the media of each one's rows lie together …
    parts: int = 1  # … and are cut between frames for so many more devices, which split the length of rows
    held: tuple[int, ...] | None = None  # the shards whose rows this process holds; None: all

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"batch.batch_size={self.batch_size} must be at least 1")
        devices = self.shards * self.parts
        if self.batch_size % self.shards or any(size % devices for size in self.patch_buckets):
            raise ConfigError(
                f"batch.batch_size={self.batch_size} does not divide over {self.shards} devices, or "
                f"batch.patch_buckets={self.patch_buckets} over {devices}; use multiples"
            )
        for name in ("length_buckets", "patch_buckets", "frame_patches"):
            sizes = getattr(self, name)
            if any(size < 1 for size in sizes) or list(sizes) != sorted(set(sizes)):
                raise ConfigError(f"batch.{name}={sizes} must be positive and increase")

    @property
    def held_rows(self) -> list[int]:
        """Numbers of the rows this process holds, in the order it holds them."""
        of_shard = self.batch_size // self.shards
        held = range(self.shards) if self.held is None else self.held
        return [shard * of_shard + row for shard in held for row in range(of_shard)]


def abstract_batch(options: BatchOptions, config: ModelConfig, frame_patches: int) -> Batch:
    """ShapeDtypeStructs of the largest batch: its longest rows, its largest patch bucket, gathered groups.

    `frame_patches` are those of the largest frame. ConfigError where the options do not bound the shapes.
    """
    if not options.length_buckets or not options.patch_buckets:
        raise ConfigError(
            f"batch.length_buckets={options.length_buckets}, batch.patch_buckets={options.patch_buckets}: "
            "without buckets the largest batch is not known; give both"
        )
    rows, length, devices = options.batch_size, options.length_buckets[-1], options.shards * options.parts
    inputs = abstract_vision_inputs(options.patch_buckets[-1] // devices, frame_patches, config.vision)
    if devices > 1:
        inputs = jax.tree.map(lambda x: jax.ShapeDtypeStruct((devices, *x.shape), x.dtype), inputs)
        inputs = inputs.replace(parts=options.parts)
    integers = jax.ShapeDtypeStruct((rows, length), np.int32)
    return Batch(
        tokens=integers,
        positions=jax.ShapeDtypeStruct((rows, 3, length), np.int32),
        segment_ids=integers,
        loss_mask=jax.ShapeDtypeStruct((rows, length), bool),
        visual_index=integers,
        vision=inputs,
    )


def length_bucket(length: int, options: BatchOptions) -> int:
    """The smallest bucket that holds `length` tokens."""
    if not options.length_buckets:
        return max(64, 1 << (length - 1).bit_length())
    return next(bucket for bucket in options.length_buckets if bucket >= length)


def check_fits(sequence: Sequence, options: BatchOptions) -> None:
    """Raise DataError when a sequence is too large for every bucket."""
    frame = max((p.grid[1] * p.grid[2] for p in sequence.patches), default=0)
    for what, size, name in (
        ("tokens", sequence.length, "length_buckets"),
        ("patches", sequence.num_patches, "patch_buckets"),
        ("patches in a frame", frame, "frame_patches"),
    ):
        buckets = getattr(options, name)
        if buckets and size > buckets[-1]:
            raise DataError(
                f"{sequence.id}: {size} {what} exceed the largest of batch.{name}={buckets}; "
                "lower the frames or pixels, or add a bucket"
            )


def fits(rows: Sized[Sequence], sequence: Sequence, options: BatchOptions) -> bool:
    """Whether `sequence` can join `rows` without exceeding its shard's part of the largest patch bucket."""
    first = len(rows) - len(rows) % (options.batch_size // options.shards)
    total = sum(row.num_patches for row in rows[first:]) + sequence.num_patches
    return not options.patch_buckets or total <= options.patch_buckets[-1] // options.shards


def bucket_key(sequence: Sequence, options: BatchOptions) -> Hashable:
    """Sequences with equal keys may share a batch."""
    grids = tuple(p.grid for p in sequence.patches) if options.fold else ()
    return length_bucket(sequence.length, options), grids


def collate(sequences: Sized[Sequence], options: BatchOptions, config: ModelConfig) -> Batch:
    """Pad at most `batch_size` sequences to their length bucket, their media to the patch bucket, and join them.

    The result holds the rows of `options.held` only; the other sequences have a say in its shape. NumPy throughout.
    Raises DataError when a sequence, or all of them, exceed the buckets, and ValueError for an empty or too long list.
    """
    if not 0 < len(sequences) <= options.batch_size:
        raise ValueError(f"{len(sequences)} sequences for a batch of {options.batch_size}")
    for sequence in sequences:
        check_fits(sequence, options)
    vision, rows = _vision(sequences, options, config)
    shape = (len(options.held_rows), length_bucket(max(s.length for s in sequences), options))
    tokens = np.full(shape, config.tokens.pad, np.int32)
    positions = np.zeros((shape[0], 3, shape[1]), np.int32)
    segment_ids = np.zeros(shape, np.int32)
    loss_mask = np.zeros(shape, bool)
    visual_index = np.full(shape, -1, np.int32)
    for i, row in enumerate(options.held_rows):
        if row >= len(sequences):
            continue
        sequence, n = sequences[row], sequences[row].length
        tokens[i, :n] = sequence.tokens
        positions[i, :, :n] = sequence.positions
        segment_ids[i, :n] = 1
        loss_mask[i, :n] = sequence.loss_mask
        is_media = sequence.visual_index >= 0
        visual_index[i, :n][is_media] = rows[row][sequence.visual_index[is_media]]
    return Batch(tokens, positions, segment_ids, loss_mask, visual_index, vision)


def _vision(
    sequences: Sized[Sequence], options: BatchOptions, config: ModelConfig
) -> tuple[VisionInputs | None, list[np.ndarray]]:
    """The tower's inputs, and for every sequence int32 [m]: the output row of each of its merged tokens."""
    if not any(sequence.patches for sequence in sequences):
        return None, [np.zeros(0, np.int32)] * len(sequences)
    per_shard = options.batch_size // options.shards
    shards = [[s.patches for s in sequences[k : k + per_shard]] for k in range(0, options.batch_size, per_shard)]
    devices = options.shards * options.parts
    sizes = tuple(size // devices for size in options.patch_buckets)
    if not sizes and options.fold:  # equal rows: blank ones fill a batch that comes short
        blank = tuple(replace(p, pixels=np.zeros_like(p.pixels)) for p in sequences[0].patches)
        shards = [shard + [blank] * (per_shard - len(shard)) for shard in shards]
    parts = [part for shard in shards for part in split_media([p for patches in shard for p in patches], options.parts)]
    total = max(sum(len(p.pixels) for p in part) for part in parts)
    if sizes and total > sizes[-1]:
        raise DataError(
            f"{total} patches for one device exceed its share of batch.patch_buckets={options.patch_buckets}; "
            "add a larger bucket"
        )
    pixels, grids = ([[getattr(p, name) for p in part] for part in parts] for name in ("pixels", "grid"))
    buckets = VisionBuckets(sizes, options.frame_patches) if sizes else None
    if devices == 1:
        vision, rows = build_vision_inputs(pixels[0], grids[0], config.vision, buckets, options.fold)
        return vision, _by_sequence(sequences, [rows])
    held = range(options.shards) if options.held is None else options.held
    chosen = [shard * options.parts + part for shard in held for part in range(options.parts)]
    vision, found = build_vision_shards(pixels, grids, config.vision, buckets, options.fold, chosen)
    merged = config.vision.spatial_merge_size**2
    of_part = vision.pixels.shape[1] // merged
    rows = [[np.full(len(array) // merged, -1, np.int32) for array in of] for of in pixels]
    for k, part in zip(chosen, found, strict=True):
        rows[k] = [r + of_part * (k % options.parts) for r in part]
    return vision.replace(parts=options.parts), _by_sequence(sequences, rows)


def split_media(media: Sized[Patches], parts: int) -> list[list[Patches]]:
    """Media in their order, cut between frames (which do not meet in the tower) into `parts` of about equal size."""
    total, done = sum(len(p.pixels) for p in media), 0
    split: list[list[Patches]] = [[] for _ in range(parts)]
    for patches in media:
        frames, height, width = patches.grid
        size = height * width
        owners = (done + np.arange(frames) * size) * parts // max(total, 1)
        for part in np.unique(owners):
            chosen = np.flatnonzero(owners == part)
            pixels = patches.pixels[chosen[0] * size : (chosen[-1] + 1) * size]
            split[part].append(replace(patches, pixels=pixels, grid=(len(chosen), height, width)))
        done += len(patches.pixels)
    return split


def _by_sequence(sequences: Sized[Sequence], rows: list[list[np.ndarray]]) -> list[np.ndarray]:
    """Output rows of every sequence, from those of the media on every device; blank media come last."""
    joined = np.concatenate([np.zeros(0, np.int32), *(of for part in rows for of in part)])
    ends = np.cumsum([0, *(int((s.visual_index >= 0).sum()) for s in sequences)])
    return [joined[start:end] for start, end in zip(ends, ends[1:], strict=False)]
