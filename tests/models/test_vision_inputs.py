"""Window order, groups and buckets of the tower's inputs."""

from itertools import pairwise

import numpy as np
import pytest
import qwen_reference as reference
from hypothesis import given, settings
from hypothesis import strategies as st

from jvlmm.models.vision_inputs import VisionBuckets, build_vision_inputs

VISION = reference.small_config().vision  # windows of 4 x 4 patches
GRIDS = st.lists(
    st.tuples(st.integers(1, 3), st.integers(1, 6).map(lambda n: 2 * n), st.integers(1, 6).map(lambda n: 2 * n)),
    min_size=1,
    max_size=3,
)


def labelled(grids):
    """Patches whose first bytes say which they are: medium, then number in processor order (two bytes)."""
    made = []
    for medium, grid in enumerate(grids):
        pixels = np.zeros((np.prod(grid), VISION.patch_dim), np.uint8)
        pixels[:, 0] = medium
        pixels[:, 1], pixels[:, 2] = np.divmod(np.arange(len(pixels)), 256)
        made.append(pixels)
    return made


def expected_place(grid, number):
    """(frame, row, column) of a patch in processor order: frames, then 2 x 2 blocks in raster order."""
    t, h, w = grid
    frame, rest = divmod(number, h * w)
    block, inner = divmod(rest, 4)
    block_row, block_column = divmod(block, w // 2)
    return frame, 2 * block_row + inner // 2, 2 * block_column + inner % 2


def members(grouping, total):
    """The patches of each group, as sets."""
    if grouping.index is None:
        sizes = [size for size, count in grouping.runs for _ in range(count)]
        starts = np.cumsum([0, *sizes * (total // sum(sizes))])
        return [set(range(start, end)) for start, end in pairwise(starts.tolist())]
    return [set(group[group >= 0].tolist()) for group in grouping.index]


@settings(max_examples=40, deadline=None)
@given(grids=GRIDS, fold=st.booleans(), bucketed=st.booleans())
def test_groups_are_exactly_the_windows_and_frames(grids, fold, bucketed):
    buckets = VisionBuckets((512, 1600)) if bucketed else None
    vision, rows = build_vision_inputs(labelled(grids), grids, VISION, buckets, fold)
    used = sum(int(np.prod(grid)) for grid in grids)
    total = len(vision.pixels)
    windows, frames, taken = {}, {}, vision.pixels[:used].astype(int)
    for i, (medium, high, low) in enumerate(taken[:, :3]):
        frame, row, column = expected_place(grids[medium], high * 256 + low)
        assert vision.rotary_ids[i].tolist() == [row, column]
        frames.setdefault((medium, frame), set()).add(i)
        windows.setdefault((medium, frame, row // 4, column // 4), set()).add(i)
    for grouping, wanted in ((vision.windows, windows), (vision.frames, frames)):
        groups = members(grouping, total)
        assert all(group in groups for group in wanted.values())
        real = [group for group in groups if group and min(group) < used]
        assert len(real) == len(wanted)
        if grouping.inverse is not None:
            flat = grouping.index.ravel()
            assert (flat[grouping.inverse[:used]] == np.arange(used)).all()
            assert (grouping.inverse[used:] == -1).all()
            assert grouping.index.shape[1] == grouping.size
    for medium, row_of_token in enumerate(rows):
        first = taken[row_of_token * 4]
        assert (first[:, 0] == medium).all()
        assert (first[:, 1] * 256 + first[:, 2] == 4 * np.arange(len(row_of_token))).all()


def shapes(vision):
    groupings = (vision.windows, vision.frames)
    return (vision.pixels.shape, *((g.index is None or g.index.shape) for g in groupings), *(g.size for g in groupings))


def test_buckets_keep_the_number_of_shapes_small():
    rng = np.random.default_rng(0)
    buckets = VisionBuckets((256, 512), frame_patches=(64, 144))
    seen = set()
    for _ in range(200):
        grids = [(int(rng.integers(1, 3)), *(2 * rng.integers(1, 6, 2)).tolist())]
        seen.add(shapes(build_vision_inputs(labelled(grids), grids, VISION, buckets)[0]))
    assert len(seen) <= 12


@pytest.mark.parametrize(
    ("grid", "runs"),
    [
        ((2, 4, 8), ((16, 1),)),
        ((3, 2, 4), ((8, 1),)),
        ((2, 6, 8), ((16, 2), (8, 2))),
        ((1, 6, 10), ((16, 2), (8, 3), (4, 1))),
    ],
)
def test_windows_fold_in_runs_of_one_size(grid, runs):
    vision, _ = build_vision_inputs(labelled([grid] * 2), [grid] * 2, VISION, fold=True)
    assert vision.windows.index is None and vision.windows.runs == runs
    assert vision.frames.index is None and vision.frames.size == grid[1] * grid[2]


def test_unlike_frames_do_not_fold():
    grids = [(1, 4, 8), (1, 6, 8)]
    vision, _ = build_vision_inputs(labelled(grids), grids, VISION, fold=True)
    assert vision.windows.index is not None and vision.frames.index is not None


def test_folding_rounds_the_bucket_up_to_whole_groups():
    grid = (1, 4, 12)
    vision, _ = build_vision_inputs(labelled([grid]), [grid], VISION, VisionBuckets((64,)), fold=True)
    assert len(vision.pixels) == 96 and vision.frames.index is None


def test_no_media_gives_padding_alone():
    vision, rows = build_vision_inputs([], [], VISION, VisionBuckets((64,)))
    assert vision.pixels.shape == (64, 1176) and rows == []
    assert (vision.windows.index == -1).all() and (vision.frames.index == -1).all()


def test_what_does_not_fit_is_refused():
    grid = (1, 4, 6)
    with pytest.raises(ValueError, match="24 patches exceed the largest bucket of 16"):
        build_vision_inputs(labelled([grid]), [grid], VISION, VisionBuckets((16,)))
    with pytest.raises(ValueError, match="a frame of 24 patches exceeds the largest of 16"):
        build_vision_inputs(labelled([grid]), [grid], VISION, VisionBuckets((64,), (16,)))
    with pytest.raises(ValueError, match="23 patches do not fill the grid"):
        build_vision_inputs([labelled([grid])[0][:23]], [grid], VISION)
    with pytest.raises(ValueError, match="whole 2x2 merge blocks"):
        build_vision_inputs([np.zeros((15, 1176), np.uint8)], [(1, 3, 5)], VISION)
