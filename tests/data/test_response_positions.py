"""Where a response stands: learnt, decoded, as a completion and before a teacher, of videos from 5 s to 10 min."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from jvlmm.data.batch import BatchOptions, collate
from jvlmm.data.groups import Rollout, collate_groups, separate_rows
from jvlmm.data.hindsight import Hindsight, block_text, block_tokens, privileged, split_prompt
from jvlmm.data.positions import next_position
from jvlmm.video.budget import PixelOptions

SECONDS = (5, 20, 60, 180, 600)  # at 2 frames a second
LENGTH = 1024


@pytest.fixture(params=["max", "grid"])
def asked(request, drawing):
    """seconds -> (processor, example) whose text goes on after media by one of the rules."""

    def asked(seconds, rule=request.param, **options):
        options = {"pixels": PixelOptions(784, 784, 784, 784), "max_length": 16_384, **options}
        return drawing.processor(text_after_media=rule, **options), drawing.example(video=f"{2 * seconds}x28x28")

    return asked


@pytest.mark.parametrize("seconds", SECONDS)
def test_a_response_is_learnt_where_it_is_decoded(asked, seconds, tokenizer, model_config):
    """In SFT, by the loop that decodes, in GRPO's rows of both layouts, and after what a teacher reads."""
    processor, example = asked(seconds)
    prompt, learnt = processor.prompt(example), processor.training(example)
    response = learnt.tokens[prompt.length :]
    place = slice(prompt.length, None)
    expected = np.broadcast_to(prompt.next_position + np.arange(len(response)), (3, len(response)))
    np.testing.assert_array_equal(learnt.positions[:, place], expected)
    np.testing.assert_array_equal(learnt.positions[:, : prompt.length], prompt.positions)
    is_beyond = prompt.next_position > prompt.positions.max() + 1 - (processor.options.text_after_media == "max")
    assert is_beyond == (processor.options.text_after_media == "max") or seconds < 60

    options = BatchOptions(batch_size=2, length_buckets=(LENGTH,))
    batch = collate([prompt], options, model_config)
    lengths = (batch.segment_ids > 0).sum(axis=-1)
    assert np.asarray(jax.jit(next_position)(batch.positions, lengths)).tolist() == [prompt.next_position, 0]

    nothing = np.zeros(len(response), np.float32)
    rollout = Rollout(response, nothing, nothing, True)
    groups = collate_groups([prompt], [[rollout, rollout]], options, model_config)
    for number in range(2):
        begin = groups.prefix.prompt + number * groups.prefix.completion
        np.testing.assert_array_equal(groups.positions[0, :, begin : begin + len(response)], expected)
    (row,) = separate_rows(prompt, [rollout])
    np.testing.assert_array_equal(row.positions, learnt.positions)

    known = Hindsight(answer="A")
    shared, tail = split_prompt(prompt, tokenizer)
    (followed,), (begin,) = privileged([rollout], [block_tokens(known, tokenizer, 99)], tail)
    (taught,) = separate_rows(shared, [followed])
    hinted = processor.training(replace(example, hint=block_text(known.lines())))
    np.testing.assert_array_equal(taught.tokens, hinted.tokens)
    np.testing.assert_array_equal(taught.positions, hinted.positions)
    assert taught.positions[0, shared.length + begin] == prompt.next_position + begin - len(tail)


@pytest.mark.parametrize("seconds", [5, 60, 600])
def test_both_rules_are_one_where_times_are_said(asked, seconds):
    """Each temporal patch is a medium of its own there, as high or wide as it reaches: the base checkpoint's way."""
    (by_max, example), (by_grid, _) = (asked(seconds, rule, timestamps="{:.1f}") for rule in ("max", "grid"))
    one, other = by_max.training(example), by_grid.training(example)
    np.testing.assert_array_equal(one.positions, other.positions)
    assert one.next_position == other.next_position
