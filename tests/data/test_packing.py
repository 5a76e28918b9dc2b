"""Packed rows: within every limit, first come first placed, nothing lost; resumed packing is in test_loader.py."""

from collections import Counter
from dataclasses import dataclass

import grain
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jvlmm.data.batch import BatchOptions, check_fits, collate, split_media
from jvlmm.data.grouping import GroupedBatches
from jvlmm.data.loader import eval_batches, make_loader
from jvlmm.data.packing import LOOK_AHEAD, Filling
from jvlmm.data.rejections import Rejections
from jvlmm.data.sequence import Sequence
from jvlmm.errors import ConfigError, DataError
from jvlmm.video.clip import Patches

LENGTH, SHARE = 100, 64  # tokens of a row, patches of a device


@dataclass(frozen=True)
class Sample:
    length: int
    grids: tuple[tuple[int, int, int], ...] = ()


def _sequence(number, sample):
    """Its tokens and pixels tell it from all others."""
    visual_index = np.full(sample.length, -1, np.int32)
    features = sum(t * h * w for t, h, w in sample.grids) // 4
    visual_index[:features] = np.arange(features)
    patches = tuple(
        Patches(np.full((t * h * w, 1176), number * 8 + k, np.uint8), (t, h, w), 1.0, np.zeros(0), np.zeros(0, int))
        for k, (t, h, w) in enumerate(sample.grids)
    )
    tokens = np.arange(sample.length, dtype=np.int32) + LENGTH * number
    positions = np.tile(np.arange(sample.length, dtype=np.int32), (3, 1))
    return Sequence(str(number), tokens, positions, tokens % 3 == 0, visual_index, patches, sample.length)


def _options(shards=1, parts=1, batch_size=4, **changes):
    patches = SHARE * shards * parts
    return BatchOptions(
        batch_size, (50, LENGTH), (patches // 2, patches), pack=True, shards=shards, parts=parts, **changes
    )


_grids = st.tuples(st.integers(1, 3), st.sampled_from([2, 4, 6]), st.sampled_from([2, 4]))
_samples = st.builds(Sample, st.integers(40, LENGTH), st.lists(_grids, max_size=2).map(tuple)) | st.builds(
    Sample, st.integers(1, LENGTH)
)
_devices = st.sampled_from([(1, 1), (2, 1), (1, 2), (2, 2), (4, 1)])


def _fitting(samples, options):
    sequences = []
    for number, sample in enumerate(samples):
        try:
            check_fits(_sequence(number, sample), options)
        except DataError:
            continue
        sequences.append(_sequence(number, sample))
    return sequences


def _within_limits(placed, options):
    """Whether (row, sequence) pairs are within the length of a row and the patches of a device."""
    per_shard = options.batch_size // options.shards
    tokens = Counter()
    for row, sequence in placed:
        tokens[row] += sequence.length
    shards = [[p for row, s in placed if row // per_shard == k for p in s.patches] for k in range(options.shards)]
    parts = [part for shard in shards for part in split_media(shard, options.parts)]
    return max(tokens.values()) <= LENGTH and max(sum(len(p.pixels) for p in part) for part in parts) <= SHARE


@settings(max_examples=60, deadline=None)
@given(st.lists(_samples, max_size=31), _devices)
def test_a_sample_takes_the_first_row_with_room(samples, devices):
    options = _options(*devices)
    filling, placed = Filling(options), []
    for sequence in _fitting(samples, options):
        filling.add(sequence)
        row = filling.rows[-1]
        roomy = [r for r in range(4) if _within_limits(sorted([*placed, (r, sequence)], key=lambda of: of[0]), options)]
        assert row == (roomy[0] if roomy else None)
        if row is not None:
            placed = sorted([*placed, (row, sequence)], key=lambda of: of[0])
    assert filling.rows[:1] in ([], [0])


def _batches(sequences, options, config):
    stream = grain.MapDataset.source(sequences)
    return list(GroupedBatches(stream, grain.ReadOptions(num_threads=1), options, config, Rejections(None), 1))


def _read(batch):
    """(row, sequence number, its pixels' values by placeholder) of every segment, each checked against its sequence."""
    features = None
    if batch.vision is not None:
        pixels = batch.vision.pixels.reshape(-1, *batch.vision.pixels.shape[-2:])
        features = pixels.reshape(len(pixels) // batch.vision.parts, -1, 4 * 1176)
    for row, segments in enumerate(batch.segment_ids):
        used = segments[segments > 0]
        assert (np.diff(used) >= 0).all() and (segments[len(used) :] == 0).all()
        assert set(used) == set(range(1, segments.max() + 1))
        for segment in range(1, segments.max() + 1):
            at = segments == segment
            tokens, index = batch.tokens[row, at], batch.visual_index[row, at]
            assert (tokens % LENGTH == np.arange(len(tokens))).all() and len(set(tokens // LENGTH)) == 1
            assert (batch.positions[row][:, at] == np.arange(len(tokens))).all()
            assert (batch.loss_mask[row, at] == (tokens % 3 == 0)).all()
            block = None if features is None else features[row * len(features) // len(batch.tokens)]
            values = [] if block is None else block[index[index >= 0]]
            assert all(len(set(value)) == 1 for value in values)
            yield row, int(tokens[0]) // LENGTH, [int(value[0]) for value in values]


@settings(max_examples=40, deadline=None)
@given(st.lists(_samples, min_size=1, max_size=31), _devices)
def test_packing_loses_nothing_and_the_oldest_leaves_first(model_config, samples, devices):
    options = _options(*devices)
    sequences = _fitting(samples, options)
    waiting = {int(s.id): s for s in sequences}
    for grouped in _batches(sequences, options, model_config):
        assert grouped.batch.tokens.shape[0] == 4 and grouped.batch.tokens.shape[1] in options.length_buckets
        found = list(_read(grouped.batch))
        assert [str(number) for _, number, _ in found] == list(grouped.ids)
        assert [sequences[k].id for k in grouped.positions] == list(grouped.ids)
        assert min(waiting) == found[0][1] and found[0][0] == 0
        assert found == sorted(found)
        placed = [(row, waiting.pop(number)) for row, number, _ in found]
        assert _within_limits(placed, options)
        for (_, number, values), (_, sequence) in zip(found, placed, strict=True):
            grids = enumerate(sequence.grids)
            assert values == [number * 8 + k for k, (t, h, w) in grids for _ in range(t * h * w // 4)]
    assert not waiting


def test_gaps_are_filled_by_what_comes_later(model_config):
    """Rows of 70 and 30, though all the 70s come first; apart they would be half empty."""
    samples = [Sample(70)] * 8 + [Sample(30)] * 8
    sequences = [_sequence(number, sample) for number, sample in enumerate(samples)]
    batches = _batches(sequences, _options(), model_config)
    assert [set((g.batch.segment_ids > 0).sum(axis=1)) for g in batches] == [{LENGTH}] * 2
    assert batches[0].ids == ("0", "8", "1", "9", "2", "10", "3", "11")


def test_a_batch_leaves_when_several_found_no_room():
    filling = Filling(_options(batch_size=1))
    for _ in range(LOOK_AHEAD):
        filling.add(Sample(60))
        assert not filling.complete
    filling.add(Sample(40))
    filling.add(Sample(60))
    assert filling.complete and filling.rows == [0, *[None] * (LOOK_AHEAD - 1), 0, None]


def test_media_that_cut_badly_take_another_row():
    """24 and 2 · 48 patches are fewer than two devices hold, but the first of them would get 24 + 48."""
    filling = Filling(_options(parts=2, batch_size=2, shards=2))
    for sample in (Sample(20, ((1, 4, 6),)), Sample(30, ((2, 6, 8),)), Sample(20, ((1, 4, 4),)), Sample(1)):
        filling.add(sample)
    assert filling.rows == [0, 1, 0, 0]


def test_media_are_cut_with_those_of_the_rows_before_and_after_and_once():
    """Two devices hold 64 patches each: 24 beside 2 · 48 cut badly in either row, and 2 · 32 before 48 well."""
    filling = Filling(_options(parts=2, batch_size=2))
    for sample in (Sample(60), Sample(60, ((2, 6, 8),)), Sample(20, ((1, 4, 6),))):
        filling.add(sample)
    assert filling.rows == [0, 1, None]
    filling = Filling(_options(parts=2, batch_size=2))
    for sample in (Sample(20, ((2, 4, 8),)), Sample(20, ((1, 6, 8),))):
        filling.add(sample)
    assert filling.rows == [0, 0]


def test_folded_rows_hold_media_of_one_size(model_config):
    samples = [Sample(40, ((1, 4, 4),)) if k % 3 else Sample(30, ((1, 2, 6),)) for k in range(12)]
    sequences = [_sequence(number, sample) for number, sample in enumerate(samples)]
    batches = _batches(sequences, _options(batch_size=2, fold=True), model_config)
    for grouped in batches:
        list(_read(grouped.batch))
        assert len({samples[int(i)] for i in grouped.ids}) == 1
        assert grouped.batch.vision.frames.index is None and grouped.batch.vision.windows.index is None
    assert sorted(int(i) for g in batches for i in g.ids) == list(range(12))


@pytest.mark.parametrize("missing", ["length_buckets", "patch_buckets"])
def test_packing_without_buckets_is_refused(missing):
    buckets = {"length_buckets": (64,), "patch_buckets": (64,), missing: ()}
    with pytest.raises(ConfigError, match=rf"batch.pack=True with .*batch.{missing}=\(\).*give both"):
        BatchOptions(pack=True, **buckets)


def test_questions_are_not_packed(drawing, model_config):
    batches = eval_batches([drawing.example()], drawing.processor().prompt, _options(), model_config, Rejections(None))
    with pytest.raises(ConfigError, match="batch.pack=True is for training"):
        next(batches)


@pytest.mark.parametrize(
    ("rows", "lengths"), [([], []), ([0, 4], [9, 9]), ([1, 0], [9, 9]), ([-1], [9]), ([0], [9, 9])]
)
def test_impossible_rows_are_refused(model_config, rows, lengths):
    sequences = [_sequence(number, Sample(length)) for number, length in enumerate(lengths)]
    with pytest.raises(ValueError):
        collate(sequences, _options(), model_config, rows)


def test_a_row_beyond_the_largest_bucket_is_refused(model_config):
    sequences = [_sequence(number, Sample(60)) for number in range(2)]
    with pytest.raises(DataError, match=r"row of 120 tokens exceeds the largest of batch.length_buckets=\(50, 100\)"):
        collate(sequences, _options(), model_config, [0, 0])


def test_media_beyond_a_device_are_refused():
    """Three frames of 36 patches on two devices of 64 each: fewer than both hold, but one would get two frames."""
    halves = _options(parts=2)
    check_fits(_sequence(0, Sample(40, ((4, 4, 6),))), halves)
    with pytest.raises(DataError, match="0: 108 patches exceed the share .* of 2 in all, of batch.patch_buckets"):
        check_fits(_sequence(0, Sample(40, ((3, 6, 6),))), halves)
    with pytest.raises(DataError, match="0: 72 patches exceed the share"):
        check_fits(_sequence(0, Sample(40, ((3, 4, 6),))), _options(shards=2))


def test_media_beyond_a_device_are_rejected_and_do_not_stop_the_loader(drawing):
    examples = [drawing.example(0, "12x56x56"), *(drawing.example(k, "4x56x56") for k in range(1, 5))]  # 96, 32 patches
    options = BatchOptions(batch_size=2, length_buckets=(256,), patch_buckets=(128,), shards=2)
    with make_loader(examples, drawing.processor(), options, 0, 1) as loader:
        assert sorted(i for _, ids in loader for i in ids) == ["e1", "e2", "e3", "e4"]
        assert set(loader.rejections.reasons) == {"e0"}
