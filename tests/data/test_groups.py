"""Prompts and their completions as one batch: what lies where, and what is padding."""

from dataclasses import replace

import numpy as np
import pytest

from jvlmm.data.batch import BatchOptions, collate
from jvlmm.data.groups import Rollout, collate_groups, separate_rows, with_features
from jvlmm.errors import DataError
from jvlmm.models.shared_prefix import SharedPrefix

OPTIONS = BatchOptions(batch_size=3, length_buckets=(128, 256))


def rollout(*tokens):
    return Rollout(np.array(tokens, np.int32), -np.arange(1.0, len(tokens) + 1), np.zeros(len(tokens)), True)


@pytest.fixture(scope="module")
def prompts(drawing):
    processor = drawing.processor()
    return [processor.prompt(drawing.example(0)), processor.prompt(drawing.example(1, video=None))]


@pytest.fixture(scope="module")
def rollouts():
    return [[rollout(5, 6, 7), rollout(8)], [rollout(9, 10), rollout(*range(20, 37))]]


@pytest.fixture(scope="module")
def batch(prompts, rollouts, model_config):
    return collate_groups(prompts, rollouts, OPTIONS, model_config)


def of_completion(array, batch, row, number):
    """The places [..., C] of one completion in an array [B, ..., L]."""
    begin = batch.prefix.prompt + number * batch.prefix.completion
    return array[row, ..., begin : begin + batch.prefix.completion]


def test_completions_lie_beside_their_prompt(batch, prompts, rollouts, model_config):
    assert batch.prefix == SharedPrefix(128, 2, 32)  # the longest has 17 tokens
    assert batch.tokens.shape == (3, batch.prefix.length)
    np.testing.assert_array_equal(batch.prompt_lengths, [prompts[0].length, prompts[1].length, 0])
    for row, (prompt, of_prompt) in enumerate(zip(prompts, rollouts, strict=True)):
        np.testing.assert_array_equal(batch.tokens[row, : prompt.length], prompt.tokens)
        np.testing.assert_array_equal(batch.positions[row, :, : prompt.length], prompt.positions)
        assert (batch.segment_ids[row, : batch.prefix.prompt] == (np.arange(128) < prompt.length)).all()
        for number, one in enumerate(of_prompt):
            length = len(one.tokens)
            tokens = of_completion(batch.tokens, batch, row, number)
            np.testing.assert_array_equal(tokens[:length], one.tokens)
            assert (tokens[length:] == model_config.tokens.pad).all()
            real = np.arange(32) < length
            np.testing.assert_array_equal(of_completion(batch.segment_ids, batch, row, number), real)
            np.testing.assert_array_equal(batch.completion_mask[row, number], real)
            np.testing.assert_array_equal(batch.sampler_log_probs[row, number, :length], one.log_probs)
            assert not batch.sampler_log_probs[row, number, length:].any()
    assert (batch.visual_index[:, batch.prefix.prompt :] == -1).all()


def test_positions_of_every_completion_go_on_from_its_prompt(batch, prompts, rollouts):
    assert prompts[0].next_position != prompts[0].length, "a video takes fewer positions than tokens, or more"
    for row, of_prompt in enumerate(rollouts):
        for number, one in enumerate(of_prompt):
            expected = np.zeros(32, int)
            expected[: len(one.tokens)] = prompts[row].next_position + np.arange(len(one.tokens))
            for axis in of_completion(batch.positions, batch, row, number):
                np.testing.assert_array_equal(axis, expected)


def test_rows_of_padding_hold_nothing(batch):
    assert not batch.segment_ids[2].any() and not batch.completion_mask[2].any()
    np.testing.assert_array_equal(batch.rollout_mask, [[True, True], [True, True], [False, False]])
    assert not batch.advantages.any() and (batch.prompt_weights == 1).all()


@pytest.mark.parametrize(("longest", "places"), [(1, 16), (16, 16), (17, 32), (40, 64)])
def test_completions_come_in_powers_of_two(prompts, model_config, longest, places):
    rollouts = [[rollout(1), rollout(*range(longest))]]
    assert collate_groups(prompts[:1], rollouts, OPTIONS, model_config).prefix.completion == places


def test_features_take_the_place_of_media(prompts, rollouts, model_config):
    """Those of each prompt follow one another, in the smallest bucket, and the text has none."""
    count = int((prompts[0].visual_index >= 0).sum())
    features = [np.ones((count, 8), np.float32), np.zeros((0, 8), np.float32), np.full((count, 8), 2, np.float32)]
    three = [*prompts, replace(prompts[0], id="again")]
    batch = collate_groups(three, [*rollouts, rollouts[0]], OPTIONS, model_config, features)
    assert batch.vision is None and len(batch.features) == 1 << (2 * count - 1).bit_length()
    for row, value in ((0, 1), (2, 2)):
        index = batch.visual_index[row]
        np.testing.assert_array_equal(np.flatnonzero(index >= 0), np.flatnonzero(prompts[0].visual_index >= 0))
        assert (batch.features[index[index >= 0]] == value).all()
    assert (batch.visual_index[1] == -1).all()
    bare, none = with_features(prompts[1:], features[1:2], OPTIONS, model_config)
    assert none is None and bare.vision is None


def test_features_that_exceed_the_buckets_are_named(prompts, model_config):
    count = int((prompts[0].visual_index >= 0).sum())
    options = replace(OPTIONS, patch_buckets=(4 * count,))
    features = [np.ones((count, 8), np.float32)] * 2
    with pytest.raises(DataError, match=r"exceed the largest of batch.patch_buckets=\(\d+,\)"):
        with_features([prompts[0]] * 2, features, options, model_config)


def test_the_usual_layout_repeats_prompt_and_media(prompts, rollouts, model_config):
    rows = separate_rows(prompts[0], rollouts[0])
    assert [row.length for row in rows] == [prompts[0].length + 3, prompts[0].length + 1]
    assert [row.loss_mask.sum() for row in rows] == [3, 1] and all(row.patches == prompts[0].patches for row in rows)
    assert [row.id for row in rows] == [f"{prompts[0].id}/0", f"{prompts[0].id}/1"]
    assert rows[0].next_position == rows[0].positions.max() + 1
    batch = collate(rows, OPTIONS, model_config)
    np.testing.assert_array_equal(batch.tokens[0, prompts[0].length :][:3], [5, 6, 7])
