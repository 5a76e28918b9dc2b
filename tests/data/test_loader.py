"""Batches in seeded order, nothing lost, positions exact, refused examples listed."""

import json
import threading
from collections import Counter

import jax
import numpy as np
import pytest

from jvlmm.data.batch import BatchOptions
from jvlmm.data.example import Media
from jvlmm.data.loader import PipelineOptions, eval_batches, make_loader
from jvlmm.data.rejections import Rejected, Rejections
from jvlmm.errors import ConfigError, DataError
from jvlmm.video.workers import ClosedDecoderError

OPTIONS = BatchOptions(batch_size=4, length_buckets=(66, 76, 256), patch_buckets=(128, 512))
PACKED = BatchOptions(batch_size=2, length_buckets=(160,), patch_buckets=(192,), pack=True)
FAST = PipelineOptions(num_threads=2, read_ahead=4, prefetch=2)


@pytest.fixture
def examples(drawing):
    """Thirty examples in three length buckets, some without media."""
    videos = ("4x28x28", "4x56x56", "12x56x56", None)
    return [drawing.example(i, videos[i % 4], question="Which shape moves left? " + "x " * (i % 3)) for i in range(30)]


def _ids(loader, count=None):
    with loader:
        return [ids for _, ids in (loader if count is None else zip_first(loader, count))]


def zip_first(loader, count):
    return (next(loader) for _ in range(count))


def _loader(examples, drawing, seed=0, epochs=1, pipeline=FAST, options=OPTIONS, **rest):
    return make_loader(examples, drawing.processor(), options, seed, epochs, pipeline=pipeline, **rest)


def test_every_example_comes_once_an_epoch_in_one_bucket_a_batch(examples, drawing):
    with _loader(examples, drawing, epochs=2) as loader:
        seen, lengths = Counter(), set()
        for batch, ids in loader:
            assert batch.tokens.shape[0] == 4 and batch.tokens.shape[1] in OPTIONS.length_buckets
            used = (batch.segment_ids > 0).sum(axis=1)
            assert ((used > 0) == (np.arange(4) < len(ids))).all()
            smaller = [bucket for bucket in OPTIONS.length_buckets if bucket < batch.tokens.shape[1]]
            assert used[: len(ids)].min() > max(smaller, default=0)
            seen.update(ids)
            lengths.add(batch.tokens.shape[1])
    assert lengths == set(OPTIONS.length_buckets)
    assert seen == {e.id: 2 for e in examples}


def test_seed_fixes_the_order_and_epochs_differ(examples, drawing):
    assert _ids(_loader(examples, drawing, seed=3)) == _ids(_loader(examples, drawing, seed=3))
    assert _ids(_loader(examples, drawing, seed=3)) != _ids(_loader(examples, drawing, seed=4))
    one_bucket = BatchOptions(batch_size=5, length_buckets=(256,))
    ids = [i for batch in _ids(_loader(examples, drawing, epochs=2, options=one_bucket)) for i in batch]
    assert sorted(ids[:30]) == sorted(ids[30:]) and ids[:30] != ids[30:]


def test_number_of_threads_does_not_change_the_batches(examples, drawing):
    plain = PipelineOptions(num_threads=1, read_ahead=1, prefetch=0)
    assert _ids(_loader(examples, drawing, pipeline=plain)) == _ids(_loader(examples, drawing))


@pytest.mark.parametrize(
    ("options", "taken"), [*((OPTIONS, taken) for taken in (0, 1, 5, 9, 12)), *((PACKED, taken) for taken in (1, 5, 9))]
)
def test_restored_loader_continues_exactly(examples, drawing, options, taken):
    with _loader(examples, drawing, epochs=2, options=options) as loader:
        list(zip_first(loader, taken))
        state = json.loads(json.dumps(loader.get_state()))
        assert not taken or state["batches"]["waiting"]
        rest = [(ids, batch, loader.get_state()) for batch, ids in loader]
    assert len(rest) > 2
    with _loader(examples, drawing, epochs=2, options=options) as restored:
        list(zip_first(restored, 3))  # a used loader can be set back as well
        restored.set_state(state)
        again = [(ids, batch, restored.get_state()) for batch, ids in restored]
    assert [(ids, state) for ids, _, state in again] == [(ids, state) for ids, _, state in rest]
    for (_, ours, _), (_, theirs, _) in zip(again, rest, strict=True):
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert (max(batch.segment_ids.max() for _, batch, _ in rest) > 1) == options.pack


def test_state_of_other_data_is_refused(examples, drawing):
    with _loader(examples, drawing) as loader:
        state = loader.get_state()
    with _loader(examples[:-1], drawing) as other, pytest.raises(DataError, match="examples=30.*examples=29"):
        other.set_state(state)
    with _loader(examples, drawing, seed=1) as other, pytest.raises(DataError, match="seed=0.*seed=1"):
        other.set_state(state)


def test_refused_examples_are_listed_once_and_never_stop(examples, drawing, tmp_path):
    path = tmp_path / "run/rejected.jsonl"
    broken = drawing.example(100, media=(Media("video", "/clips/broken-1.mp4"),))
    untold = drawing.example(101, question="<video><video> what?")
    large = drawing.example(102, video="80x56x56")
    examples = [broken, *examples[:10], untold, large, *examples[10:]]
    with _loader(examples, drawing, epochs=3, rejected_path=path) as loader:
        seen = Counter(i for _, ids in loader for i in ids)
        assert set(loader.rejections.reasons) == {"e100", "e101", "e102"}
    assert set(seen.values()) == {3} and len(seen) == 30
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert sorted(row["id"] for row in rows) == ["e100", "e101", "e102"]
    assert "is damaged" in next(row["reason"] for row in rows if row["id"] == "e100")
    with _loader(examples, drawing, rejected_path=path) as resumed:
        list(resumed)
    assert len(path.read_text().splitlines()) == 3


def test_dataset_without_a_usable_example_ends_with_the_reason(drawing):
    examples = [drawing.example(i, media=(Media("video", "/clips/broken-1.mp4"),)) for i in range(5)]
    with _loader(examples, drawing, epochs=None) as loader, pytest.raises(DataError, match="among the last 5.*damaged"):
        next(loader)
    with pytest.raises(DataError, match="no examples"):
        _loader([], drawing)


def test_an_error_that_nobody_has_foreseen_costs_its_row(examples, drawing):
    class Bug(drawing.decoder):
        def video(self, path, *args, **kwargs):
            if "4x28x28" in path:
                raise ZeroDivisionError("a bug")
            return super().video(path, *args, **kwargs)

    with make_loader(examples, drawing.processor(Bug()), OPTIONS, 0, 1, pipeline=FAST) as loader:
        seen = [i for _, ids in loader for i in ids]
        bad = {f"e{number}" for number in range(0, 30, 4)}
        assert set(seen) == {e.id for e in examples} - bad and set(loader.rejections.reasons) == bad
        assert loader.rejections.reasons["e0"] == "e0: unexpected ZeroDivisionError: a bug"


def test_an_error_of_the_run_itself_is_no_row_s(examples, drawing):
    """A decoder that does not start or is closed would fail for every row."""

    class Closed(drawing.decoder):
        def video(self, *args, **kwargs):
            raise ClosedDecoderError("the Decoder is closed")

    with make_loader(examples, drawing.processor(Closed()), OPTIONS, 0, 1, pipeline=FAST) as loader:
        with pytest.raises(ClosedDecoderError):
            list(loader)
        assert not len(loader.rejections)


def test_batches_leave_early_rather_than_exceed_the_patch_bucket(drawing):
    examples = [drawing.example(i, "12x56x56") for i in range(8)]  # 96 patches each
    options = BatchOptions(batch_size=8, length_buckets=(256,), patch_buckets=(128, 256))
    with _loader(examples, drawing, options=options) as loader:
        sizes = [(len(ids), len(batch.vision.pixels)) for batch, ids in loader]
    assert sizes == [(2, 256)] * 4


def test_next_batch_is_prepared_while_this_one_is_used(examples, drawing):
    """After the first batch the background thread goes on by itself, up to its limit."""
    decoder = drawing.decoder()
    with make_loader(examples, drawing.processor(decoder), OPTIONS, 0, None, pipeline=FAST) as loader:
        next(loader)
        wanted, waiting = len(decoder.calls) + 6, threading.Event()
        for _ in range(300):
            if len(decoder.calls) >= wanted:
                break
            waiting.wait(0.1)
        assert len(decoder.calls) >= wanted
        waiting.wait(0.3)
        assert len(decoder.calls) < 60


def test_close_ends_the_threads(examples, drawing):
    before = threading.active_count()
    loader = _loader(examples, drawing, epochs=None)
    next(loader)
    loader.close()
    loader.close()
    with pytest.raises(ValueError, match="closed"):
        next(loader)
    for thread in threading.enumerate():
        if thread.name.startswith("grain"):
            thread.join(5)
    assert threading.active_count() <= before


def test_evaluation_covers_every_example_once(examples, drawing, model_config):
    broken = drawing.example(100, media=(Media("video", "/clips/broken-1.mp4"),))
    examples = [*examples[:7], broken, *examples[7:]]
    rejections, seen = Rejections(None), []
    for batch, indices in eval_batches(
        examples, drawing.processor().prompt, OPTIONS, model_config, rejections, pipeline=FAST
    ):
        assert not batch.loss_mask.any()
        for row, index in enumerate(indices):
            expected = drawing.processor().prompt(examples[index]).tokens
            np.testing.assert_array_equal(batch.tokens[row, : len(expected)], expected)
        seen += indices
    assert sorted(seen) == [i for i in range(31) if i != 7]
    assert set(rejections.reasons) == {"e100"}
    assert list(eval_batches([], None, OPTIONS, model_config, rejections)) == []


def test_evaluation_where_nothing_is_usable_yields_nothing(drawing, model_config):
    examples = [drawing.example(i, media=(Media("video", "/clips/broken-1.mp4"),)) for i in range(3)]
    rejections = Rejections(None)
    assert list(eval_batches(examples, drawing.processor().prompt, OPTIONS, model_config, rejections)) == []
    assert len(rejections) == 3


@pytest.mark.parametrize("text", ["notes of my own\n", "notes of my own", "[1, 2]\n", '{"name": "x"}\n'])
def test_foreign_rejection_list_is_not_overwritten(tmp_path, text):
    path = tmp_path / "rejected.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match="rejected.jsonl: not a list"):
        Rejections(path).add(Rejected("a", "b"))
    assert path.read_text() == text


def test_rejection_list_torn_by_a_kill_is_continued(tmp_path):
    path = tmp_path / "rejected.jsonl"
    for name in ("a", "b"):
        Rejections(path).add(Rejected(name, "line\u2028of text"))
    path.write_bytes(path.read_bytes()[:-9])
    rejections = Rejections(path)
    assert set(rejections.reasons) == {"a"}
    rejections.add(Rejected("b", "x"))
    assert Rejections(path).reasons == {"a": "line\u2028of text", "b": "x"}


def test_rejection_list_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="rejected.jsonl: rejected examples cannot be listed"):
        Rejections(tmp_path / "file" / "rejected.jsonl").add(Rejected("a", "b"))


@pytest.mark.parametrize("options", [{"num_threads": 0}, {"prefetch": -1}])
def test_impossible_options_are_refused(options):
    with pytest.raises(ConfigError, match="pipeline"):
        PipelineOptions(**options)


@pytest.mark.parametrize(("usable", "broken"), [(1, 1), (1, 3), (2, 2), (1, 9)])
def test_a_usable_row_in_every_epoch_is_enough(drawing, usable, broken):
    """Rejected rows at the end of one epoch and the begin of the next do not add up."""
    rows = [drawing.example(k, None) for k in range(usable)]
    rows += [drawing.example(100 + k, media=(Media("video", "/clips/broken-1.mp4"),)) for k in range(broken)]
    one = BatchOptions(batch_size=1, length_buckets=(256,))
    for seed in range(3):
        with make_loader(rows, drawing.processor(), one, seed, pipeline=FAST) as loader:
            assert len(list(zip_first(loader, 60))) == 60
            assert len(loader.rejections) == broken
            state = json.loads(json.dumps(loader.get_state()))
        with make_loader(rows, drawing.processor(), one, seed, pipeline=FAST) as again:
            again.set_state(state)
            assert len(list(zip_first(again, 30))) == 30


def test_a_template_that_raises_costs_the_rows_it_raises_for(examples, drawing):
    processor = drawing.processor()
    encode = processor.tokenizer.encode_chat

    class Raising:
        def __getattr__(self, name):
            return getattr(drawing.processor().tokenizer, name)

        def encode_chat(self, messages, *rest):
            if "x x" in str(messages):
                raise TypeError("can only concatenate str\nnot list")
            return encode(messages, *rest)

    processor.tokenizer = Raising()
    with make_loader(examples, processor, OPTIONS, 0, 1, pipeline=FAST) as loader:
        assert len([i for _, ids in loader for i in ids]) == 20
    assert loader.rejections.reasons["e2"] == "e2: unexpected TypeError: can only concatenate str not list"
