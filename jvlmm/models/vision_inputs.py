"""Host side of the vision tower: patches in window order, and the groups attention happens in (NumPy)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, groupby

import flax.struct
import jax
import numpy as np

from jvlmm.models.config import VisionConfig


@flax.struct.dataclass
class Grouping:
    """A partition of the flat patch axis; attention happens inside groups.

    G groups of at most S patches, gathered by `index`; or, with `index` None, groups cut by reshape from an axis
    which repeats `runs`: so many groups of one size, then so many of another. `inverse` is flat: group * S + place.
    """

    index: jax.Array | None  # int32 [G, S]: patch in each slot, -1 where the slot is empty
    inverse: jax.Array | None  # int32 [N]: slot of each patch, -1 for padding
    runs: tuple[tuple[int, int], ...] = flax.struct.field(pytree_node=False)  # (size, count)

    @property
    def size(self) -> int:
        """Patches of the largest group."""
        return max(size for size, _ in self.runs)


@flax.struct.dataclass
class VisionInputs:
    """All patches of a batch, of any number of images and videos, in window order; N is a multiple of merge².

    Or of its shards: every array then has a leading axis, and no patch meets one of another shard.
    """

    pixels: jax.Array  # uint8 [N, C * temporal_patch * patch * patch]
    rotary_ids: jax.Array  # int32 [N, 2]: row and column of the patch in its frame
    windows: Grouping  # windows of window_size pixels, smaller at the right and lower edges
    frames: Grouping  # one temporal patch each
    parts: int = flax.struct.field(pytree_node=False, default=1)  # consecutive shards that belong to the same rows


@dataclass(frozen=True)
class VisionBuckets:
    """The static shapes a batch may take, so that few programs are compiled.

    The smallest allowed number that holds the batch is taken. Group counts are rounded up to
    (patches / size) · 2^k, which adds at most a handful of shapes to each patch count.
    """

    patches: tuple[int, ...] = ()  # allowed N; empty: 2^k and 3 · 2^k from 64
    frame_patches: tuple[int, ...] = ()  # allowed patches per frame; empty: powers of two


def build_vision_inputs(
    pixels: Sequence[np.ndarray],
    grids: Sequence[tuple[int, int, int]],
    config: VisionConfig,
    buckets: VisionBuckets | None = None,
    fold: bool = False,
) -> tuple[VisionInputs, list[np.ndarray]]:
    """Join images and videos into one flat, padded patch axis.

    Args:
        pixels: uint8 [t·h·w, patch_dim] of each image or video, in the order of transformers' processors
            (frames, then merge × merge blocks in raster order).
        grids: (t, h, w) in patches; h and w are multiples of the merge size.
        buckets: allowed shapes; None takes the exact ones.
        fold: use reshapes instead of gathers for a grouping that is alike in all frames. Padding is then
            rounded up to whole frames. The tree structure of the result depends on it, so it compiles apart.

    Returns:
        the inputs, and for each image or video int32 [t·h·w / merge²]: the row of the tower's output that holds
        each merged token in raster order.

    Raises:
        ValueError: if the patches outnumber the largest bucket, or do not match their grid.
    """
    (inputs,), (rows,) = _build([pixels], [grids], config, buckets, fold)
    return inputs, rows


def build_vision_shards(
    pixels: Sequence[Sequence[np.ndarray]],
    grids: Sequence[Sequence[tuple[int, int, int]]],
    config: VisionConfig,
    buckets: VisionBuckets | None = None,
    fold: bool = False,
    chosen: Sequence[int] | None = None,
) -> tuple[VisionInputs, list[list[np.ndarray]]]:
    """As `build_vision_inputs`, of each shard apart, on a leading axis: no patch meets those of another shard.

    `buckets` are of one shard. Rows of the tower's output count within each shard. The result holds the `chosen`
    shards (None: all) in a shape that does for every shard; only their pixels are looked at.
    """
    inputs, rows = _build(pixels, grids, config, buckets, fold, chosen)
    return jax.tree.map(lambda *arrays: np.stack(arrays), *inputs), rows


def abstract_vision_inputs(patches: int, frame_patches: int, config: VisionConfig) -> VisionInputs:
    """ShapeDtypeStructs of a full bucket of `patches` in frames of up to `frame_patches`, gathered.

    Frames and windows that are not quite full are taken to be the rule, so that their groups are doubled.
    """

    def integers(*shape):
        return jax.ShapeDtypeStruct(shape, np.int32)

    def gathered(size):
        groups = 2 * -(-patches // size)
        return Grouping(integers(groups, size), integers(patches), ((size, groups),))

    window = (config.window_size // config.patch_size) ** 2
    pixels = jax.ShapeDtypeStruct((patches, config.patch_dim), np.uint8)
    frames = gathered(1 << (frame_patches - 1).bit_length())
    return VisionInputs(pixels, integers(patches, 2), gathered(window), frames)


def _build(pixels, grids, config, buckets, fold, chosen=None):
    """[VisionInputs] and [rows] of the chosen shards, of equal shapes."""
    chosen = range(len(grids)) if chosen is None else chosen
    unit = config.spatial_merge_size**2
    media = [[_window_order(tuple(grid), config) for grid in of] for of in grids]
    windows_of = [  # of each shard, for every frame the patches of its windows
        [sizes for (t, _, _), (_, _, sizes) in zip(*of, strict=True) for _ in range(t)]
        for of in zip(grids, media, strict=True)
    ]
    frames_of = [[[sum(sizes)] for sizes in frames] for frames in windows_of]
    window_runs, frame_runs = (_runs([*chain(*groups)]) if fold else None for groups in (windows_of, frames_of))
    used = max(sum(map(sum, frames)) for frames in frames_of)
    total = _padded_total(used, [runs for runs in (window_runs, frame_runs) if runs], unit, buckets)
    flat = [_flat(pixels[k], grids[k], media[k], total, unit, config) for k in chosen]

    side = config.window_size // config.patch_size
    window = side * side if buckets else max(chain(*chain(*windows_of)), default=unit)
    frame = _frame_size([*chain(*chain(*frames_of))], unit, buckets)
    windows, frames = (
        [Grouping(None, None, runs)] * len(flat)
        if runs
        else _gathered([[*chain(*of)] for of in groups], total, size, bool(buckets), chosen)
        for runs, groups, size in ((window_runs, windows_of, window), (frame_runs, frames_of, frame))
    )
    inputs = [VisionInputs(*arrays, *of) for (*arrays, _), *of in zip(flat, windows, frames, strict=True)]
    return inputs, [rows for *_, rows in flat]


def _flat(pixels, grids, media, total, unit, config):
    """(pixels [N, patch_dim], rotary_ids [N, 2], output rows of each medium) of one shard."""
    flat_pixels = np.zeros((total, config.patch_dim), np.uint8)
    rotary_ids = np.zeros((total, 2), np.int32)
    rows, start = [], 0
    for grid, (order, ids, _), array in zip(grids, media, pixels, strict=True):
        if len(array) != len(order) * unit:
            raise ValueError(f"{len(array)} patches do not fill the grid {tuple(grid)}")
        patches = (order[:, None] * unit + np.arange(unit)).ravel()
        flat_pixels[start : start + len(patches)] = array[patches]
        rotary_ids[start : start + len(patches)] = ids[patches]
        rows.append((np.argsort(order) + start // unit).astype(np.int32))
        start += len(patches)
    return flat_pixels, rotary_ids, rows


@lru_cache(maxsize=64)
def _window_order(grid, config):
    """Order of the merged tokens by window, rotary ids of the patches in raster order, patches per window of a frame.

    Larger windows come first in their frame, so that windows of one size are neighbours.
    """
    t, h, w = grid
    merge = config.spatial_merge_size
    side = config.window_size // config.patch_size // merge
    if h % merge or w % merge or min(grid) < 1:
        raise ValueError(f"grid {tuple(grid)} is not made of whole {merge}x{merge} merge blocks")
    rows, columns = h // merge, w // merge
    tokens = np.arange(t * rows * columns, dtype=np.int64)
    frame, row, column = np.unravel_index(tokens, (t, rows, columns))
    across = -(-columns // side)
    window = (frame * -(-rows // side) + row // side) * across + column // side
    tokens_of = np.bincount(window)
    order = np.lexsort((window, -tokens_of[window], frame))
    sizes = np.sort(tokens_of[: len(tokens_of) // t])[::-1] * merge**2
    inner_row, inner_column = np.divmod(np.arange(merge**2), merge)
    ids = np.stack([row[:, None] * merge + inner_row, column[:, None] * merge + inner_column], axis=-1)
    return order, ids.reshape(-1, 2).astype(np.int32), sizes.tolist()


def _runs(frames):
    """Runs of groups of one size that every frame repeats, given each frame's sizes; None where frames differ."""
    sizes = set(chain(*frames))
    if len(sizes) == 1:
        return ((sizes.pop(), 1),)
    if not frames or any(frame != frames[0] for frame in frames):
        return None
    return tuple((size, len(list(run))) for size, run in groupby(frames[0]))


def _padded_total(used, folded, unit, buckets):
    """N: the bucket that holds the patches, and whole repetitions of the runs of groupings that fold."""
    total = max(used, unit)
    if buckets is not None:
        fitting = [size for size in buckets.patches or [_rounded(used)] if size >= used]
        if not fitting:
            raise ValueError(f"{used} patches exceed the largest bucket of {max(buckets.patches)}")
        total = min(fitting)
    multiple = math.lcm(unit, *(sum(size * count for size, count in runs) for runs in folded))
    return -(-total // multiple) * multiple


def _rounded(patches):
    """The next of 64, 96, 128, 192, 256, …: at most half as many again."""
    power = 1 << max(6, (patches - 1).bit_length())
    return power // 4 * 3 if power > 64 and patches <= power // 4 * 3 else power


def _frame_size(frame_sizes, unit, buckets):
    """S of the frames' grouping."""
    largest = max(frame_sizes, default=unit)
    if buckets is None:
        return largest
    fitting = [size for size in buckets.frame_patches if size >= largest]
    if buckets.frame_patches and not fitting:
        raise ValueError(f"a frame of {largest} patches exceeds the largest of {max(buckets.frame_patches)}")
    return min(fitting) if fitting else 1 << (largest - 1).bit_length()


def _gathered(shards, total, capacity, bucketed, chosen):
    """For each chosen shard a Grouping of consecutive groups, of the sizes listed, in `capacity` slots each."""
    groups = max(1, *map(len, shards))
    if bucketed:
        count = -(-total // capacity)
        while count < groups:
            count *= 2
        groups = count
    return [_gathered_shard(np.asarray(shards[k], np.int64), total, capacity, groups) for k in chosen]


def _gathered_shard(sizes, total, capacity, groups):
    starts = np.cumsum(sizes) - sizes
    place = np.arange(sizes.sum()) - np.repeat(starts, sizes)
    slots = np.repeat(np.arange(len(sizes)), sizes) * capacity + place
    index = np.full(groups * capacity, -1, np.int32)
    index[slots] = np.arange(len(slots))
    inverse = np.full(total, -1, np.int32)
    inverse[: len(slots)] = slots
    return Grouping(index.reshape(groups, capacity), inverse, ((capacity, groups),))
