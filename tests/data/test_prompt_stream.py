"""Prompts in a shuffled, endless order that resumes exactly, without those that cannot be used."""

import itertools
import json
import threading
import time
from dataclasses import replace

import pytest

from jvlmm.data.batch import BatchOptions
from jvlmm.data.loader import PipelineOptions
from jvlmm.data.prompt_stream import PromptStream
from jvlmm.data.rejections import Rejections
from jvlmm.errors import DataError

OPTIONS = BatchOptions(batch_size=2, length_buckets=(128,))


def accept(example):
    """Every example will do."""


@pytest.fixture
def stream(drawing):
    """Makes streams; they are closed at the end."""
    opened = []

    def make(examples, number=3, seed=0, rejections=None, check=accept, decoder=None, further=(), **pipeline):
        options = PipelineOptions(read_ahead=4, **pipeline)
        rejections = Rejections(None) if rejections is None else rejections
        arguments = examples, drawing.processor(decoder), OPTIONS, number, seed, rejections, check, options
        opened.append(PromptStream(*arguments, *further))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


@pytest.fixture
def examples(drawing):
    return [drawing.example(k, video=None) for k in range(7)]


def ids(stream, rounds):
    return [name for _ in range(rounds) for name in next(stream)[1]]


def test_every_epoch_has_all_examples_in_an_order_of_its_own(stream, examples):
    drawn = ids(stream(examples), 7)
    epochs = [drawn[:7], drawn[7:14], drawn[14:]]
    assert all(sorted(epoch) == [e.id for e in examples] for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert drawn == ids(stream(examples), 7) and drawn != ids(stream(examples, seed=1), 7)
    assert ids(stream(examples, shuffle=False), 3) == [f"e{k % 7}" for k in range(9)]


def test_prompts_are_questions_with_what_the_model_reads(stream, drawing, examples):
    prompts, names = next(stream([drawing.example(9)], number=1))
    assert names == ("e9",) and prompts[0].example.answer == "A"
    expected = drawing.processor().prompt(drawing.example(9))
    assert prompts[0].sequence.tokens.tolist() == expected.tokens.tolist() and len(prompts[0].sequence.patches) == 1
    assert not prompts[0].sequence.loss_mask.any()


@pytest.mark.parametrize("rounds", [0, 1, 4])
def test_a_saved_position_resumes_exactly(stream, drawing, examples, rounds):
    """Also where examples in between are rejected, and where the state has been written as JSON."""
    examples[2] = drawing.example(2, video="broken")
    first = stream(examples)
    ids(first, rounds)
    state = json.loads(json.dumps(first.get_state()))
    expected = ids(first, 5)
    second = stream(examples)
    ids(second, 1)
    second.set_state(state)
    assert ids(second, 5) == expected


@pytest.mark.parametrize("change", [{"seed": 1}, {"fewer": True}])
def test_a_position_in_other_data_is_refused(stream, examples, change):
    state = stream(examples).get_state()
    fewer = examples[:-1] if change.pop("fewer", False) else examples
    with pytest.raises(DataError, match="the saved position is for .*new run directory"):
        stream(fewer, **change).set_state(state)


def test_examples_that_cannot_be_used_are_left_out_and_listed_once(stream, drawing, examples, tmp_path):
    examples[0] = drawing.example(0, video="broken")
    examples[1] = drawing.example(1, question="word " * 300, video=None)
    examples[2] = replace(examples[2], answer="?")

    def check(example):
        if example.answer == "?":
            raise DataError(f"{example.id}: no letter")

    rejections = Rejections(tmp_path / "rejected.jsonl")
    drawn = ids(stream(examples, rejections=rejections, check=check), 8)
    assert set(drawn) == {"e3", "e4", "e5", "e6"} and len(drawn) == 24
    listed = [json.loads(line) for line in (tmp_path / "rejected.jsonl").read_text().splitlines()]
    assert {row["id"] for row in listed} == {"e0", "e1", "e2"} and len(listed) == len(rejections) == 3
    reasons = rejections.reasons
    assert "is damaged" in reasons["e0"] and "length_buckets" in reasons["e1"] and reasons["e2"] == "e2: no letter"


def test_a_video_that_vanishes_is_left_out_from_then_on(stream, drawing, examples):
    class Vanishing(drawing.decoder):
        gone = False

        def video(self, path, *arguments, **named):
            return super().video("broken.mp4" if self.gone else path, *arguments, **named)

    decoder, rejections = Vanishing(), Rejections(None)
    examples[3] = drawing.example(3)
    following = stream(examples, number=7, rejections=rejections, decoder=decoder)
    assert "e3" in ids(following, 1) and not len(rejections)
    decoder.gone = True
    later = ids(following, 6)
    assert later[7:].count("e3") == 0 and set(rejections.reasons) == {"e3"}


def test_data_without_a_usable_example_end_the_run(stream, drawing):
    with pytest.raises(DataError, match="none of the 3 examples can be used; the last: e.*is damaged"):
        next(stream([drawing.example(k, video="broken") for k in range(3)]))
    with pytest.raises(DataError, match="holds no examples"):
        stream([])


def test_examples_that_are_skipped_are_passed_over(stream, examples):
    asked = []

    def skips(example):
        asked.append(example.id)
        return example.id in ("e2", "e5")

    drawn = ids(stream(examples, number=5, further=(False, skips)), 2)
    assert sorted(set(drawn)) == ["e0", "e1", "e3", "e4", "e6"] and set(asked) == {e.id for e in examples}
    plain = [name for name in ids(stream(examples, number=7), 2) if name not in ("e2", "e5")]
    assert drawn == plain, "in the order of the others"


def test_a_stream_of_which_everything_is_skipped_goes_on(stream, examples):
    assert len(ids(stream(examples, number=2, further=(False, lambda example: True)), 2)) == 4


def test_prompts_carry_the_responses_that_are_wanted(stream, drawing, examples):
    examples = [replace(example, response=None if k % 2 else f"It is {k}.") for k, example in enumerate(examples)]
    prompts, _ = next(stream(examples, number=7, further=(True,)))
    processor = drawing.processor()
    for prompt in prompts:
        if prompt.example.response is None:
            assert prompt.response is None
            continue
        learnt = processor.training(prompt.example)
        assert prompt.response.tolist() == learnt.tokens[learnt.loss_mask].tolist()
        end = learnt.tokens[prompt.sequence.length :][: len(prompt.response)]
        assert prompt.response.tolist() == end.tolist(), "they follow the prompt at once"
    assert all(prompt.response is None for prompt in next(stream(examples, number=7))[0])


def test_a_usable_example_in_every_epoch_is_enough(stream, drawing):
    rows = [drawing.example(0, video=None), *(drawing.example(k, video="broken") for k in range(1, 6))]
    for seed in range(3):
        rejections = Rejections(None)
        assert ids(stream(rows, number=1, seed=seed, rejections=rejections), 20) == ["e0"] * 20 and len(rejections) == 5


def test_a_check_that_raises_what_nobody_foresaw_costs_its_row(stream, examples):
    def check(example):
        if example.id == "e3":
            raise OverflowError("int too large to convert to float")

    rejections = Rejections(None)
    assert "e3" not in ids(stream(examples, rejections=rejections, check=check), 8)
    assert rejections.reasons == {"e3": "e3: unexpected OverflowError: int too large to convert to float"}


@pytest.mark.parametrize("workers", [1, 6])
def test_threads_follow_the_decoder_and_two_steps_are_read_ahead(drawing, workers):
    """Six decoding processes were served by two threads, and a quarter of a step was read ahead."""
    ready, asked, seen = threading.Barrier(workers), itertools.count(), []

    class Counting(drawing.decoder):
        def video(self, path, *arguments, **named):
            if next(asked) < workers:
                ready.wait(20)  # passes where so many files are asked for at one time
            seen.append(path)
            return super().video(path, *arguments, **named)

    decoder = Counting()
    decoder.workers = workers
    examples = [drawing.example(number) for number in range(200)]
    arguments = examples, drawing.processor(decoder), OPTIONS, 12, 0, Rejections(None), accept
    with PromptStream(*arguments) as stream:
        first = next(stream)[1]
        end = time.monotonic() + 20
        while len(seen) < 3 * 12 and time.monotonic() < end:
            time.sleep(0.01)
    assert len(seen) >= 3 * 12, "the step that is taken, and the two after it"
    with PromptStream(*arguments, PipelineOptions(num_threads=1, read_ahead=1)) as plain:
        assert next(plain)[1] == first
