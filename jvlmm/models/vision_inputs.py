"""Host side of the vision tower: patches in window order, and the groups attention happens in (NumPy)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
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
    """All patches of a batch, of any number of images and videos, in window order; N is a multiple of merge²."""

    pixels: jax.Array  # uint8 [N, C * temporal_patch * patch * patch]
    rotary_ids: jax.Array  # int32 [N, 2]: row and column of the patch in its frame
    windows: Grouping  # windows of window_size pixels, smaller at the right and lower edges
    frames: Grouping  # one temporal patch each


@dataclass(frozen=True)
class VisionBuckets:
    """The static shapes a batch may take, so that few programs are compiled.

    The smallest allowed number that holds the batch is taken. Group counts are rounded up to
    (patches / size) · 2^k, which adds at most a handful of shapes to each patch count.
    """

    patches: tuple[int, ...]  # allowed N
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
    unit = config.spatial_merge_size**2
    media = [_window_order(grid, config) for grid in grids]
    for (order, _, _), array, grid in zip(media, pixels, grids, strict=True):
        if len(array) != len(order) * unit:
            raise ValueError(f"{len(array)} patches do not fill the grid {tuple(grid)}")
    windows_of = [sizes for (t, _, _), (_, _, sizes) in zip(grids, media, strict=True) for _ in range(t)]
    frames_of = [[sum(sizes)] for sizes in windows_of]
    window_runs, frame_runs = (_runs(groups) if fold else None for groups in (windows_of, frames_of))
    used = sum(map(sum, frames_of))
    total = _padded_total(used, [runs for runs in (window_runs, frame_runs) if runs], unit, buckets)

    flat_pixels = np.zeros((total, config.patch_dim), np.uint8)
    rotary_ids = np.zeros((total, 2), np.int32)
    rows, start = [], 0
    for (order, ids, _), array in zip(media, pixels, strict=True):
        patches = (order[:, None] * unit + np.arange(unit)).ravel()
        flat_pixels[start : start + len(patches)] = array[patches]
        rotary_ids[start : start + len(patches)] = ids[patches]
        rows.append((np.argsort(order) + start // unit).astype(np.int32))
        start += len(patches)

    side = config.window_size // config.patch_size
    window = side * side if buckets else max(chain(*windows_of), default=unit)
    frame = _frame_size([size for (size,) in frames_of], unit, buckets)
    windows, frames = (
        Grouping(None, None, runs) if runs else _gathered([*chain(*groups)], total, capacity, bool(buckets))
        for runs, groups, capacity in ((window_runs, windows_of, window), (frame_runs, frames_of, frame))
    )
    return VisionInputs(flat_pixels, rotary_ids, windows, frames), rows


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
        fitting = [size for size in buckets.patches if size >= used]
        if not fitting:
            raise ValueError(f"{used} patches exceed the largest bucket of {max(buckets.patches)}")
        total = min(fitting)
    multiple = math.lcm(unit, *(sum(size * count for size, count in runs) for runs in folded))
    return -(-total // multiple) * multiple


def _frame_size(frame_sizes, unit, buckets):
    """S of the frames' grouping."""
    largest = max(frame_sizes, default=unit)
    if buckets is None:
        return largest
    fitting = [size for size in buckets.frame_patches if size >= largest]
    if buckets.frame_patches and not fitting:
        raise ValueError(f"a frame of {largest} patches exceeds the largest of {max(buckets.frame_patches)}")
    return min(fitting) if fitting else 1 << (largest - 1).bit_length()


def _gathered(sizes, total, capacity, bucketed):
    """Grouping of consecutive groups of `sizes` patches on an axis of `total`, each gathered into `capacity` slots."""
    sizes = np.asarray(sizes, np.int64)
    groups = max(len(sizes), 1)
    if bucketed:
        count = -(-total // capacity)
        while count < groups:
            count *= 2
        groups = count
    starts = np.cumsum(sizes) - sizes
    place = np.arange(sizes.sum()) - np.repeat(starts, sizes)
    slots = np.repeat(np.arange(len(sizes)), sizes) * capacity + place
    index = np.full(groups * capacity, -1, np.int32)
    index[slots] = np.arange(len(slots))
    inverse = np.full(total, -1, np.int32)
    inverse[: len(slots)] = slots
    return Grouping(index.reshape(groups, capacity), inverse, ((capacity, groups),))
