"""Host side of the vision tower: patches in window order, and the groups attention happens in (NumPy)."""

from collections.abc import Sequence
from dataclasses import dataclass

import flax.struct
import jax
import numpy as np

from jvlmm.models.config import VisionConfig


@flax.struct.dataclass
class Grouping:
    """A partition of the flat patch axis; attention happens inside groups.

    G groups of at most S = `size` patches. Where all groups are full, `index` is None and the flat axis folds
    into [N / size, size] by reshape. `inverse` is flat: group * size + place.
    """

    index: jax.Array | None  # int32 [G, S]: patch in each slot, -1 where the slot is empty
    inverse: jax.Array | None  # int32 [N]: slot of each patch, -1 for padding
    size: int = flax.struct.field(pytree_node=False)


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
        fold: use reshapes instead of gathers for a grouping whose groups are all of one size. Padding is then
            rounded up to whole groups. The tree structure of the result depends on it, so it compiles apart.

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
    window_sizes = [size for _, _, sizes in media for size in sizes]
    frame_sizes = [h * w for t, h, w in grids for _ in range(t)]
    total = _padded_total(sum(frame_sizes), window_sizes, frame_sizes, unit, buckets, fold)

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
    window = side * side if buckets else max(window_sizes, default=unit)
    windows = _group(window_sizes, total, window, bool(buckets), fold)
    frames = _group(frame_sizes, total, _frame_size(frame_sizes, unit, buckets), bool(buckets), fold)
    return VisionInputs(flat_pixels, rotary_ids, windows, frames), rows


def _window_order(grid, config):
    """Order of the merged tokens by window, rotary ids of the patches in raster order, patches per window."""
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
    order = np.argsort(window, kind="stable")
    sizes = np.bincount(window) * merge**2
    inner_row, inner_column = np.divmod(np.arange(merge**2), merge)
    ids = np.stack([row[:, None] * merge + inner_row, column[:, None] * merge + inner_column], axis=-1)
    return order, ids.reshape(-1, 2).astype(np.int32), sizes.tolist()


def _padded_total(used, window_sizes, frame_sizes, unit, buckets, fold):
    """N: the bucket that holds the patches, and whole groups where groupings fold."""
    total = max(used, unit)
    if buckets is not None:
        fitting = [size for size in buckets.patches if size >= used]
        if not fitting:
            raise ValueError(f"{used} patches exceed the largest bucket of {max(buckets.patches)}")
        total = min(fitting)
    multiple = unit
    if fold:
        equal = [set(sizes) for sizes in (window_sizes, frame_sizes)]
        multiple = int(np.lcm.reduce([unit] + [sizes.pop() for sizes in equal if len(sizes) == 1]))
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


def _group(sizes, total, capacity, bucketed, fold):
    """Grouping of consecutive runs of `sizes` patches on an axis of `total`."""
    if fold and len(set(sizes)) == 1:
        return Grouping(None, None, sizes[0])
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
    return Grouping(index.reshape(groups, capacity), inverse, capacity)
