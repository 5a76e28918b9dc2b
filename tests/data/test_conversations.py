"""Several questions about the same media in one row: grouping, rendering, and where the loss lies."""

from dataclasses import replace

import numpy as np
import pytest

from jvlmm.data.conversations import Conversations
from jvlmm.data.example import Example, Media
from jvlmm.data.prompts import render
from jvlmm.errors import DataError


def _rows(*videos):
    return [
        Example(f"row-{k}", f"Question {k}?", f"{k}", "number", (Media("video", f"{video}.mp4"),), response=f"{k}")
        for k, video in enumerate(videos)
    ]


def test_every_row_is_asked_once_and_only_with_its_own_media():
    rows = _rows(*"abcabcaab")
    conversations = Conversations(rows, turns=3, seed=1)
    turns = [[*c.earlier, c] for c in conversations]
    assert sorted(t.id for asked in turns for t in asked) == sorted(row.id for row in rows)
    assert all(len({t.media for t in asked}) == 1 for asked in turns)
    assert sorted(len(asked) for asked in turns) == [1, 2, 3, 3]


def test_the_order_is_the_seeds():
    rows = _rows(*"a" * 8)
    ids = [[t.id for t in Conversations(rows, 8, seed)[0].earlier] for seed in (1, 1, 2)]
    assert ids[0] == ids[1] != ids[2]


def test_media_are_shown_once_in_the_first_turn():
    (conversation,) = Conversations(_rows("a", "a"), turns=2)
    first, said, second = render(conversation)
    (earlier,) = conversation.earlier
    assert [item["type"] for item in first["content"]] == ["video", "text"]
    assert first["content"][1]["text"].startswith(earlier.question)
    assert said == {"role": "assistant", "content": earlier.response}
    assert [item["type"] for item in second["content"]] == ["text"]


def test_tags_before_a_joined_question_do_not_show_the_media_again():
    rows = [replace(row, question=f"<video>\n{row.question}") for row in _rows("a", "a")]
    (conversation,) = Conversations(rows, turns=2)
    first, _, second = render(conversation)
    assert [item["type"] for item in first["content"]] == ["video", "text"]
    assert [item["type"] for item in second["content"]] == ["text"]


def test_questions_under_different_system_texts_are_not_joined():
    rows = [replace(row, system=f"{k % 2}") for k, row in enumerate(_rows(*"aaaa"))]
    conversations = Conversations(rows, turns=4)
    assert [[*c.earlier, c] for c in conversations] and sorted(c.system for c in conversations) == ["0", "1"]
    assert all(turn.system == "" for c in conversations for turn in c.earlier)


def test_an_earlier_turn_needs_its_response():
    unanswered = Example("open", "Question?", "1", "number")
    conversation = Example("closed", "Question?", "1", "number", earlier=(unanswered,))
    with pytest.raises(DataError, match=r"the earlier turn open has no response"):
        render(conversation)


def test_the_loss_lies_on_every_response_and_the_prompt_learns_nothing(drawing):
    processor, example = drawing.processor(), drawing.example
    earlier = example(question="Which way does it move?", response="left")
    conversation = example(earlier=(earlier,), response="B")
    sequence = processor.training(conversation)
    said = processor.tokenizer.decode(sequence.tokens[sequence.loss_mask], skip_special_tokens=False)
    assert said == "left<|im_end|>B<|im_end|>"
    prompt = processor.prompt(conversation)
    assert not prompt.loss_mask.any()
    np.testing.assert_array_equal(prompt.tokens, sequence.tokens[: prompt.length])
    assert prompt.num_patches == sequence.num_patches == processor.prompt(earlier).num_patches
