"""Collation: every row's tokens and pixels arrive, padding is inert, shapes stay within the buckets."""

import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jvlmm.data.batch import BatchOptions, abstract_batch, bucket_key, check_fits, collate
from jvlmm.data.example import Media
from jvlmm.errors import ConfigError, DataError

OPTIONS = BatchOptions(batch_size=4, length_buckets=(64, 128, 256), patch_buckets=(128, 256, 512))


def _merged_pixels(patches, unit=4):
    """uint8 [merged tokens, unit * patch_dim] in the order of the placeholders."""
    return np.concatenate([p.pixels.reshape(-1, unit * p.pixels.shape[1]) for p in patches])


def _check_rows(batch, sequences, unit=4):
    tower_rows = None if batch.vision is None else batch.vision.pixels.reshape(-1, unit * 1176)
    for i, s in enumerate(sequences):
        n = s.length
        np.testing.assert_array_equal(batch.tokens[i, :n], s.tokens)
        np.testing.assert_array_equal(batch.positions[i, :, :n], s.positions)
        np.testing.assert_array_equal(batch.loss_mask[i, :n], s.loss_mask)
        assert (batch.segment_ids[i, :n] == 1).all() and (batch.segment_ids[i, n:] == 0).all()
        assert not batch.loss_mask[i, n:].any() and (batch.visual_index[i, n:] == -1).all()
        rows = batch.visual_index[i, :n][s.visual_index >= 0]
        assert (batch.visual_index[i, :n][s.visual_index < 0] == -1).all()
        if s.patches:
            np.testing.assert_array_equal(tower_rows[rows], _merged_pixels(s.patches))
    for i in range(len(sequences), len(batch.tokens)):
        assert not batch.segment_ids[i].any() and not batch.loss_mask[i].any() and (batch.visual_index[i] == -1).all()


_sizes = st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6)).map(
    lambda g: f"{2 * g[0]}x{28 * g[1]}x{28 * g[2]}"
)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(_sizes, max_size=2), min_size=1, max_size=4))
def test_each_placeholder_finds_its_pixels(drawing, model_config, rows):
    """Whatever the windows do to the order, the indexed row of the tower holds the pixels of that token."""
    processor = drawing.processor()
    sequences = [
        processor.training(drawing.example(i, media=tuple(Media("video", f"/{i}-{size}.mp4") for size in sizes)))
        for i, sizes in enumerate(rows)
    ]
    options = BatchOptions(batch_size=4, length_buckets=(512,))
    _check_rows(collate(sequences, options, model_config), sequences)


@pytest.mark.parametrize(
    ("missing", "frame"), [("length_buckets", None), ("length_buckets", 64), ("patch_buckets", 64)]
)
def test_without_buckets_the_largest_batch_is_not_known(model_config, missing, frame):
    with pytest.raises(ConfigError, match="the largest batch is not known; give both"):
        abstract_batch(dataclasses.replace(OPTIONS, **{missing: ()}), model_config, frame)
    of_texts = abstract_batch(dataclasses.replace(OPTIONS, patch_buckets=()), model_config, None)
    assert of_texts.tokens.shape == (4, 256) and of_texts.vision is None


def test_without_patch_buckets_few_shapes_occur(drawing, model_config):
    """Every number of frames would be a program of its own; now those of 8 to 96 frames share eight."""
    options, shapes = BatchOptions(batch_size=1, length_buckets=(512,)), set()
    for frames in range(8, 98, 2):
        sequence = drawing.processor().training(drawing.example(frames, f"{frames}x56x56"))
        batch = collate([sequence], options, model_config)
        size = batch.vision.pixels.shape[0]
        assert sequence.num_patches <= size <= 1.5 * max(sequence.num_patches, 64)
        shapes.add(str(jax.tree.map(np.shape, batch)))
    assert len(shapes) <= 8


@pytest.mark.parametrize("count", [1, 2])
def test_short_folded_batch_has_the_shape_of_a_full_one(drawing, model_config, count):
    options = dataclasses.replace(OPTIONS, patch_buckets=(), fold=True)
    sequences = [drawing.processor().training(drawing.example(i)) for i in range(4)]
    full, short = collate(sequences, options, model_config), collate(sequences[:count], options, model_config)
    _check_rows(full, sequences)
    _check_rows(short, sequences[:count])
    assert jax.tree.map(np.shape, full) == jax.tree.map(np.shape, short)
    assert jax.tree.structure(full) == jax.tree.structure(short)
    assert full.vision.windows.index is None and full.vision.frames.index is None


def test_dtypes_are_those_of_the_contract(drawing, model_config):
    batch = collate([drawing.processor().training(drawing.example())], OPTIONS, model_config)
    assert [getattr(batch, n).dtype for n in ("tokens", "positions", "segment_ids", "visual_index")] == [np.int32] * 4
    assert batch.loss_mask.dtype == bool and batch.vision.pixels.dtype == np.uint8
    assert batch.positions.shape == (4, 3, batch.tokens.shape[1])


def test_lengths_and_patches_take_the_smallest_bucket(drawing, model_config):
    processor = drawing.processor()
    small = processor.training(drawing.example(video="2x28x28"))
    large = processor.training(drawing.example(video="8x56x56"))
    batch = collate([small], OPTIONS, model_config)
    assert (batch.tokens.shape[1], len(batch.vision.pixels)) == (128 if small.length > 64 else 64, 128)
    batch = collate([small, large, large], OPTIONS, model_config)
    assert len(batch.vision.pixels) == 256
    powers = BatchOptions(batch_size=1)
    assert collate([small], powers, model_config).tokens.shape[1] == 1 << (small.length - 1).bit_length()


def test_text_only_batch_has_no_vision(drawing, model_config):
    batch = collate([drawing.processor().training(drawing.example(video=None))], OPTIONS, model_config)
    assert batch.vision is None


def test_folding_keeps_sizes_apart(drawing):
    fold = dataclasses.replace(OPTIONS, fold=True)
    a, b, c = (drawing.processor().training(drawing.example(0, v)) for v in ("4x56x56", "4x56x56", "4x28x112"))
    assert bucket_key(a, fold) == bucket_key(b, fold) != bucket_key(c, fold)
    assert bucket_key(a, OPTIONS) == bucket_key(c, OPTIONS)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (BatchOptions(length_buckets=(16, 32)), r"e0: \d+ tokens exceed the largest of batch.length_buckets"),
        (BatchOptions(patch_buckets=(16,)), r"e0: 32 patches exceed the largest of batch.patch_buckets"),
        (BatchOptions(frame_patches=(4, 8)), r"e0: 16 patches in a frame exceed the largest of batch.frame_patches"),
    ],
)
def test_what_fits_no_bucket_is_refused(drawing, model_config, options, reason):
    sequence = drawing.processor().training(drawing.example())
    with pytest.raises(DataError, match=reason):
        check_fits(sequence, options)
    with pytest.raises(DataError, match=reason):
        collate([sequence], options, model_config)


@pytest.mark.parametrize(
    "options", [{"batch_size": 0}, {"length_buckets": (64, 64)}, {"patch_buckets": (8, 4)}, {"frame_patches": (0, 4)}]
)
def test_impossible_options_are_refused(options):
    with pytest.raises(ConfigError, match=f"batch.{next(iter(options))}"):
        BatchOptions(**options)
