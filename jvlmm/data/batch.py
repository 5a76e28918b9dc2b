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
    """What a step takes. Rows are right-padded; a short batch ends in rows that are padding throughout.

    A row holds one sequence, or several packed one after another; nothing of one depends on the others.
    """

    tokens: np.ndarray  # int32 [B, L]
    positions: np.ndarray  # int32 [B, 3, L], 0 on padding
    segment_ids: np.ndarray  # int32 [B, L], 1, 2, … on the tokens of the row's sequences, 0 on padding
    loss_mask: np.ndarray  # bool [B, L], True on the tokens to learn (each predicted from the one before it)
    visual_index: np.ndarray  # int32 [B, L], row of the tower's output in the row's shard, -1 on text and padding
    vision: VisionInputs | None  # all media of the batch, by shard where there are several; None where no row has any


@dataclass(frozen=True)
class BatchOptions:
    """The static shapes batches come in; every combination that occurs is compiled once."""

    batch_size: int = 8  # rows, of all processes together
    length_buckets: tuple[int, ...] = ()  # tokens of a row, padding included; (): powers of two from 64
    patch_buckets: tuple[int, ...] = ()  # patches of a batch, padding included; (): 2^k and 3 · 2^k, folded no padding
    frame_patches: tuple[int, ...] = ()  # patches of a frame; (): powers of two
    fold: bool = False  # only rows with media of equal sizes share a batch, whose attention needs no gathers then
    pack: bool = False  # fill rows up to the largest length bucket with several sequences each, for training
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
        if self.pack and not (self.length_buckets and self.patch_buckets):
            raise ConfigError(
                f"batch.pack=True with batch.length_buckets={self.length_buckets}, batch.patch_buckets="
                f"{self.patch_buckets}: packed batches are filled up to the largest of each; give both"
            )

    @property
    def vision_buckets(self) -> VisionBuckets | None:
        """The shapes of one device's media; None, as many patches as there are, where folded rows are all alike."""
        sizes = tuple(size // (self.shards * self.parts) for size in self.patch_buckets)
        return VisionBuckets(sizes, self.frame_patches) if sizes or not self.fold else None

    @property
    def held_shards(self) -> Sized[int]:
        """Numbers of the shards whose rows this process holds, in the order it holds them."""
        return range(self.shards) if self.held is None else self.held

    @property
    def held_rows(self) -> list[int]:
        """Numbers of those rows."""
        of_shard = self.batch_size // self.shards
        return [shard * of_shard + row for shard in self.held_shards for row in range(of_shard)]


def abstract_batch(options: BatchOptions, config: ModelConfig, frame_patches: int | None) -> Batch:
    """ShapeDtypeStructs of the largest batch: its longest rows, its largest patch bucket, gathered groups.

    `frame_patches` are those of the largest frame; None where no row has media. ConfigError where the options do not
    bound the shapes.
    """
    if not options.length_buckets or (frame_patches is not None and not options.patch_buckets):
        raise ConfigError(
            f"batch.length_buckets={options.length_buckets}, batch.patch_buckets={options.patch_buckets}: "
            "without buckets the largest batch is not known; give both"
        )
    rows, length, devices = options.batch_size, options.length_buckets[-1], options.shards * options.parts
    inputs = None
    if frame_patches is not None:
        inputs = abstract_vision_inputs(options.patch_buckets[-1] // devices, frame_patches, config.vision)
    if devices > 1 and inputs is not None:
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
    frame = max((height * width for _, height, width in sequence.grids), default=0)
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
    if not media_fit(sequence.grids, options):
        raise DataError(
            f"{sequence.id}: {sequence.num_patches} patches exceed the share that its row's devices have, of "
            f"{options.shards * options.parts} in all, of batch.patch_buckets={options.patch_buckets}; "
            "lower the frames or pixels, or add a bucket"
        )


def media_fit(grids: Sized[tuple[int, int, int]], options: BatchOptions) -> bool:
    """Whether the media of one shard's rows leave each of its devices within its share of the largest patch bucket."""
    if not options.patch_buckets or not grids:
        return True
    owners, sizes = frame_parts(grids, options.parts)
    share = options.patch_buckets[-1] // (options.shards * options.parts)
    return np.bincount(owners, sizes).max() <= share


def bucket_key(sequence: Sequence, options: BatchOptions) -> Hashable:
    """Sequences with equal keys may share a batch."""
    length = options.length_buckets[-1] if options.pack else length_bucket(sequence.length, options)
    return length, sequence.grids if options.fold else ()


def collate(
    sequences: Sized[Sequence], options: BatchOptions, config: ModelConfig, rows: Sized[int] | None = None
) -> Batch:
    """Pad rows of sequences to their length bucket, their media to the patch bucket, and join them.

    `rows` tells the row of each sequence, without decreasing; those of one row follow one another as segments 1, 2, …
    None gives each a row of its own. The result holds the rows of `options.held` only; the other sequences have a say
    in its shape. NumPy throughout. Raises DataError when a sequence, a row, or all of them exceed the buckets, and
    ValueError for no sequences, or rows that a batch of `batch_size` does not have.
    """
    rows = list(range(len(sequences)) if rows is None else rows)
    if not rows or rows != sorted(rows) or rows[0] < 0 or rows[-1] >= options.batch_size:
        raise ValueError(f"{len(sequences)} sequences in rows {rows} of a batch of {options.batch_size}")
    for sequence in sequences:
        check_fits(sequence, options)
    longest = int(np.bincount(rows, [s.length for s in sequences]).max())
    if options.length_buckets and longest > options.length_buckets[-1]:
        raise DataError(
            f"a row of {longest} tokens exceeds the largest of batch.length_buckets={options.length_buckets}"
        )
    vision, features = _vision(sequences, options, config, rows)
    held = {row: place for place, row in enumerate(options.held_rows)}
    shape = (len(held), length_bucket(longest, options))
    tokens = np.full(shape, config.tokens.pad, np.int32)
    positions = np.zeros((shape[0], 3, shape[1]), np.int32)
    segment_ids = np.zeros(shape, np.int32)
    loss_mask = np.zeros(shape, bool)
    visual_index = np.full(shape, -1, np.int32)
    ends = np.zeros(len(held), int)
    for row, sequence, of_media in zip(rows, sequences, features, strict=True):
        if row not in held:
            continue
        i = held[row]
        place = slice(ends[i], ends[i] + sequence.length)
        tokens[i, place] = sequence.tokens
        positions[i, :, place] = sequence.positions
        segment_ids[i, place] = segment_ids[i].max() + 1
        loss_mask[i, place] = sequence.loss_mask
        is_media = sequence.visual_index >= 0
        visual_index[i, place][is_media] = of_media[sequence.visual_index[is_media]]
        ends[i] = place.stop
    return Batch(tokens, positions, segment_ids, loss_mask, visual_index, vision)


def _vision(
    sequences: Sized[Sequence], options: BatchOptions, config: ModelConfig, rows: list[int]
) -> tuple[VisionInputs | None, list[np.ndarray]]:
    """The tower's inputs, and for every sequence int32 [m]: the output row of each of its merged tokens."""
    if not any(sequence.patches for sequence in sequences):
        return None, [np.zeros(0, np.int32)] * len(sequences)
    per_shard = options.batch_size // options.shards
    shards = [
        [s.patches for s, row in zip(sequences, rows, strict=True) if row // per_shard == k]
        for k in range(options.shards)
    ]
    devices, buckets = options.shards * options.parts, options.vision_buckets
    if buckets is None:  # equal rows: blank ones fill a batch that comes short
        blank = tuple(replace(p, pixels=np.zeros_like(p.pixels)) for p in sequences[0].patches)
        shards = [shard + [blank] * (per_shard - len(shard)) for shard in shards]
    parts = [part for shard in shards for part in split_media([p for patches in shard for p in patches], options.parts)]
    total = max(sum(len(p.pixels) for p in part) for part in parts)
    if options.patch_buckets and total > buckets.patches[-1]:
        raise DataError(
            f"{total} patches for one device exceed its share of batch.patch_buckets={options.patch_buckets}; "
            "add a larger bucket"
        )
    pixels, grids = ([[getattr(p, name) for p in part] for part in parts] for name in ("pixels", "grid"))
    if devices == 1:
        vision, features = build_vision_inputs(pixels[0], grids[0], config.vision, buckets, options.fold)
        return vision, _by_sequence(sequences, [features])
    chosen = [shard * options.parts + part for shard in options.held_shards for part in range(options.parts)]
    vision, found = build_vision_shards(pixels, grids, config.vision, buckets, options.fold, chosen)
    merged = config.vision.spatial_merge_size**2
    of_part = vision.pixels.shape[1] // merged
    features = [[np.full(len(array) // merged, -1, np.int32) for array in of] for of in pixels]
    for k, part in zip(chosen, found, strict=True):
        features[k] = [of + of_part * (k % options.parts) for of in part]
    return vision.replace(parts=options.parts), _by_sequence(sequences, features)


def split_media(media: Sized[Patches], parts: int) -> list[list[Patches]]:
    """Media in their order, cut between frames (which do not meet in the tower) into `parts` of about equal size."""
    split: list[list[Patches]] = [[] for _ in range(parts)]
    owners, _ = frame_parts([p.grid for p in media], parts)
    for patches in media:
        frames, height, width = patches.grid
        size = height * width
        of_media, owners = owners[:frames], owners[frames:]
        for part in np.unique(of_media):
            chosen = np.flatnonzero(of_media == part)
            pixels = patches.pixels[chosen[0] * size : (chosen[-1] + 1) * size]
            split[part].append(replace(patches, pixels=pixels, grid=(len(chosen), height, width)))
    return split


def frame_parts(grids: Sized[tuple[int, int, int]], parts: int) -> tuple[np.ndarray, np.ndarray]:
    """(the part of each frame, its patches), int64 [frames] both: frames in their order, cut into about equal parts."""
    sizes = np.array([h * w for t, h, w in grids for _ in range(t)], np.int64)
    return (np.cumsum(sizes) - sizes) * parts // max(sizes.sum(), 1), sizes


def _by_sequence(sequences: Sized[Sequence], rows: list[list[np.ndarray]]) -> list[np.ndarray]:
    """Output rows of every sequence, from those of the media on every device; blank media come last."""
    joined = np.concatenate([np.zeros(0, np.int32), *(of for part in rows for of in part)])
    ends = np.cumsum([0, *(int((s.visual_index >= 0).sum()) for s in sequences)])
    return [joined[start:end] for start, end in zip(ends, ends[1:], strict=False)]
