"""What a teacher reads beyond the prompt: the same media and question, then hindsight, then the same completion."""

import numpy as np
import pytest

from jvlmm.data.batch import BatchOptions
from jvlmm.data.example import Example
from jvlmm.data.groups import Rollout, collate_groups
from jvlmm.data.hindsight import HEADER, Hindsight, block_text, block_tokens, hindsight_of, privileged, split_prompt
from jvlmm.errors import DataError

CHOICE = Example("m", "Which way?", "B", "mcq", options=("left", "right"), meta={"window": [1, 2.5]})


def test_lines_stand_only_where_something_is_known():
    full = hindsight_of(CHOICE, (1.5, 2.0), "Look again.")
    assert full.lines() == [
        "Verified answer: B. right",
        "Verified time window: 1.0s to 2.5s",
        "Key frames at: 1.5s, 2.0s",
        "Corrective feedback: Look again.",
    ]
    assert Hindsight().lines() == [] and Hindsight(answer="red").lines() == ["Verified answer: red"]


def test_the_block_leaves_out_lines_from_the_last_on_until_it_fits(tokenizer):
    full = hindsight_of(CHOICE, (1.5,), "Look again at the end of the clip.")
    whole = block_tokens(full, tokenizer, 10_000)
    assert tokenizer.decode(whole).split("\n") == [f" {HEADER}", *full.lines()]
    shorter = block_tokens(full, tokenizer, len(whole) - 1)
    assert tokenizer.decode(shorter).split("\n")[1:] == full.lines()[:3]
    assert len(block_tokens(full, tokenizer, 3)) == 0 and len(block_tokens(Hindsight(), tokenizer, 99)) == 0


def test_a_question_with_the_block_as_its_hint_is_what_the_teacher_reads(drawing, tokenizer):
    known = hindsight_of(CHOICE, (1.5,), "")
    asked, hinted = (
        drawing.processor(style="think").prompt(drawing.example(hint=hint)) for hint in ("", block_text(known.lines()))
    )
    shared, tail = split_prompt(asked, tokenizer)
    np.testing.assert_array_equal(
        hinted.tokens, np.concatenate([shared.tokens, block_tokens(known, tokenizer, 999), tail])
    )
    assert hinted.length > asked.length and block_text([]) == ""


def test_the_teacher_reads_the_students_prompt_then_hindsight_then_the_same_completion(
    drawing, tokenizer, model_config
):
    prompt = drawing.processor().prompt(drawing.example())
    shared, tail = split_prompt(prompt, tokenizer)
    np.testing.assert_array_equal(np.concatenate([shared.tokens, tail]), prompt.tokens)
    assert shared.next_position + len(tail) == prompt.next_position and tail[0] == tokenizer.eos_id
    tokens = tokenizer.encode("<think>so</think>")
    rollouts = [Rollout(tokens[:n], np.zeros(n), np.zeros(n), True) for n in (2, len(tokens))]
    blocks = [block_tokens(Hindsight(answer="red"), tokenizer, 99), np.zeros(0, np.int32)]
    followed, starts = privileged(rollouts, blocks, tail)
    assert starts.tolist() == [len(blocks[0]) + len(tail), len(tail)]
    for rollout, other, start in zip(rollouts, followed, starts, strict=True):
        np.testing.assert_array_equal(other.tokens[start:], rollout.tokens)
    batch = collate_groups(
        [shared], [followed], BatchOptions(1, length_buckets=(128,), patch_buckets=(64,)), model_config
    )
    places = batch.completion_mask.shape[-1]
    of_second = batch.positions[0, :, 128 + places : 128 + places + len(tail) + 1]
    expected = shared.next_position + np.arange(len(tail) + 1)
    np.testing.assert_array_equal(of_second, np.broadcast_to(expected, of_second.shape))
    assert of_second[0, -1] == prompt.next_position, "without hindsight the completion stands where the student has it"


def test_a_prompt_without_an_end_of_turn_is_refused(drawing, tokenizer):
    prompt = drawing.processor().prompt(drawing.example())
    prompt.tokens[prompt.tokens == tokenizer.eos_id] = 0
    with pytest.raises(DataError, match="e0: .*no end of a turn"):
        split_prompt(prompt, tokenizer)
