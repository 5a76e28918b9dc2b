"""Several processes go through the batches of one, each with its own rows."""

import json
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from jvlmm.data.batch import BatchOptions
from jvlmm.data.example import Media
from jvlmm.data.loader import PipelineOptions, make_loader
from jvlmm.data.share import Share
from jvlmm.errors import ConfigError, VideoError
from jvlmm.sharding.exchange import Interrupted

FAST = PipelineOptions(num_threads=2, read_ahead=4, prefetch=1)
OPTIONS = BatchOptions(batch_size=8, length_buckets=(66, 76, 256), patch_buckets=(1024,), frame_patches=(16,), shards=4)
HALVES = ((0, 1), (2, 3))


class Seat:
    """The exchange of one process; `table` is what all of them see."""

    def __init__(self, table, process, count):
        self._table, self._process, self._count = table, process, count
        self._place, self._open = (0, 0), True  # generation and number of the round

    def round(self, value):
        with self._table["changed"]:
            self._table[*self._place, self._process] = json.dumps(value)
            self._table["changed"].notify_all()
            keys = [(*self._place, process) for process in range(self._count)]
            self._table["changed"].wait_for(lambda: not self._open or all(key in self._table for key in keys), 60)
            if not self._open:
                raise Interrupted
            self._place = self._place[0], self._place[1] + 1
            return [json.loads(self._table[key]) for key in keys]

    def interrupt(self):
        with self._table["changed"]:
            self._open = False
            self._table["changed"].notify_all()

    def restart(self):
        self._place, self._open = (self._place[0] + 1, 0), True


def new_table():
    return {"changed": threading.Condition()}


@pytest.fixture
def examples(drawing):
    """Thirty-one examples in three length buckets, some without media, one that cannot be decoded."""
    videos = ("4x28x28", "4x56x56", "12x56x56", None)
    rows = [drawing.example(i, videos[i % 4], question="Which shape moves left? " + "x " * (i % 3)) for i in range(30)]
    return [*rows[:9], drawing.example(100, media=(Media("video", "/clips/broken-1.mp4"),)), *rows[9:]]


def batches_of(examples, drawing, count, shards=None, process=0, state=None, decoder=None, options=OPTIONS, seat=None):
    """[(batch, ids, state)] of one process, and its rejections."""
    share = Share(seat, shards, process) if shards else None
    with make_loader(
        examples, drawing.processor(decoder), options, seed=3, epochs=None, pipeline=FAST, share=share
    ) as loader:
        if state:
            loader.set_state(state)
        return [(*next(loader), loader.get_state()) for _ in range(count)], loader.rejections.reasons


def in_processes(examples, drawing, count, shards=HALVES, decoders=None, **rest):
    """`batches_of` in every process, as threads."""
    table = new_table()
    decoders = decoders or [drawing.decoder() for _ in shards]
    with ThreadPoolExecutor(len(shards)) as pool:
        running = [
            pool.submit(
                batches_of,
                examples,
                drawing,
                count,
                shards,
                process,
                decoder=decoder,
                seat=Seat(table, process, len(shards)),
                **rest,
            )
            for process, decoder in enumerate(decoders)
        ]
        return [future.result(120) for future in running]


def rows_of(batch):
    """The rows of a batch in an order of their own: tokens, and the sum of the pixels each one sees."""
    return sorted(tuple(row) for row in np.asarray(batch.tokens)[np.asarray(batch.segment_ids).any(axis=1)])


def together(results, number):
    return sorted(row for batches, _ in results for row in rows_of(batches[number][0]))


def test_processes_go_through_the_batches_of_one(examples, drawing):
    alone, rejected = batches_of(examples, drawing, 12)
    results = in_processes(examples, drawing, 12)
    for number, (batch, ids, state) in enumerate(alone):
        assert together(results, number) == rows_of(batch)
        for batches, _ in results:
            part, part_ids, part_state = batches[number]
            assert sorted(part_ids) == sorted(ids) and part_state == state
            assert part.tokens.shape == (4, batch.tokens.shape[1])
            if batch.vision is not None:
                assert part.vision.pixels.shape == (2, *batch.vision.pixels.shape[1:])
    assert [reasons for _, reasons in results] == [rejected] * 2 and list(rejected) == ["e100"]


def test_each_process_decodes_little_more_than_its_part(examples, drawing):
    examples = [drawing.example(i, f"4x{28 + 28 * (i % 2)}x56") for i in range(40)]
    decoders = [drawing.decoder(), drawing.decoder()]
    one_bucket = BatchOptions(batch_size=8, length_buckets=(256,), shards=4)
    in_processes(examples, drawing, 10, decoders=decoders, options=one_bucket)
    assert all(40 <= len(decoder.calls) < 64 for decoder in decoders), [len(d.calls) for d in decoders]


def test_pixels_follow_their_row(examples, drawing):
    """Every visual token of a row points at the features of its own clip, as it does in one process."""
    unit = 4

    def seen(batch, of_shard):
        pairs = Counter()
        for row, index in enumerate(batch.visual_index):
            pixels = batch.vision.pixels[row // of_shard].reshape(-1, unit, batch.vision.pixels.shape[-1])
            for token in index[index >= 0]:
                pairs[(tuple(batch.tokens[row][:30]), int(pixels[token].astype(np.int64).sum()))] += 1
        return pairs

    alone, _ = batches_of(examples, drawing, 6)
    results = in_processes(examples, drawing, 6)
    for number, (batch, _, _) in enumerate(alone):
        if batch.vision is not None:
            parts = [batches[number][0] for batches, _ in results]
            assert sum((seen(part, 2) for part in parts), Counter()) == seen(batch, 2)


@pytest.mark.parametrize("taken", [1, 5])
def test_a_position_restores_in_any_number_of_processes(examples, drawing, taken):
    alone, _ = batches_of(examples, drawing, taken + 4)
    state = alone[taken - 1][2]
    results = in_processes(examples, drawing, 4, state=state)
    for number, (batch, ids, after) in enumerate(alone[taken:]):
        assert together(results, number) == rows_of(batch)
        assert all(sorted(batches[number][1]) == sorted(ids) for batches, _ in results)
        assert all(batches[number][2] == after for batches, _ in results)
    again, _ = batches_of(examples, drawing, 2, state=results[1][0][1][2])
    assert [sorted(ids) for _, ids, _ in again] == [sorted(ids) for _, ids, _ in alone[taken + 2 :]]


def test_processes_with_the_same_rows_read_the_same(examples, drawing):
    results = in_processes(examples, drawing, 5, shards=((0, 1), (2, 3), (0, 1), (2, 3)))
    for number in range(5):
        parts = [batches[number][0] for batches, _ in results]
        for one, other in ((0, 2), (1, 3)):
            np.testing.assert_array_equal(parts[one].tokens, parts[other].tokens)
            if parts[one].vision is not None:
                np.testing.assert_array_equal(parts[one].vision.pixels, parts[other].vision.pixels)


def test_a_file_that_only_one_process_can_read_leaves_a_row_without_loss(drawing):
    class Impaired(drawing.decoder):
        def video(self, path, *args, **kwargs):
            if "28x56" in path:
                raise VideoError(f"{path}: is damaged; fetch it again")
            return super().video(path, *args, **kwargs)

    examples = [drawing.example(i, "4x28x56") for i in range(16)]
    shards = ((0, 1), (2, 3), (0, 1), (2, 3))  # the last repeats what the second process has read
    decoders = [*(drawing.decoder() for _ in range(3)), Impaired()]
    results = in_processes(examples, drawing, 3, shards, decoders)
    for batches, reasons in results:
        assert all(len(ids) == 8 for _, ids, _ in batches)
        assert len(reasons) >= 4, "it is told to the others, and listed"
    whole, part = (results[process][0][0][0] for process in (1, 3))
    assert whole.loss_mask.any() and not part.loss_mask.any()
    assert whole.tokens.shape == part.tokens.shape and whole.vision.pixels.shape == part.vision.pixels.shape


def test_a_loader_that_waits_for_others_can_be_closed(examples, drawing):
    table = new_table()
    share = Share(Seat(table, 0, 2), HALVES, 0)
    loader = make_loader(
        examples, drawing.processor(), OPTIONS, seed=3, pipeline=PipelineOptions(prefetch=0), share=share
    )
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(next, loader)
        with table["changed"]:
            assert table["changed"].wait_for(lambda: (0, 0, 0) in table, 60), "it has told its part"
        loader.close()
        with pytest.raises(Interrupted):
            waiting.result(60)


def test_overlapping_parts_are_refused():
    with pytest.raises(ConfigError, match="overlapping parts"):
        Share(None, ((0, 1), (1, 2)), 0)
