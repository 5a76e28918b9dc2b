"""Answers about a video of 60 s under both rules for text after media.

transformers decodes by its own positions for `grid`, and by those of its release 4.49, given to it, for `max`.
"""

from dataclasses import replace
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="parity needs PyTorch, a test dependency")
pytest.importorskip("transformers", reason="parity needs transformers")

import qwen_reference as reference  # noqa: E402
from qwen_reference import Visual  # noqa: E402

from jvlmm.data.batch import BatchOptions, collate  # noqa: E402
from jvlmm.data.groups import Rollout, collate_groups, separate_rows  # noqa: E402
from jvlmm.data.positions import mrope_positions  # noqa: E402
from jvlmm.data.sequence import Sequence  # noqa: E402
from jvlmm.rollout.generate import generate  # noqa: E402
from jvlmm.rollout.sampling import SamplingOptions, row_keys  # noqa: E402
from jvlmm.training.completions import group_log_probs, row_log_probs  # noqa: E402
from jvlmm.video.clip import Patches  # noqa: E402

VIDEO = Visual("video", (40, 4, 4))  # 40 steps of reference.SECONDS_PER_GRID: 60 s
BEFORE, AFTER, ANSWER = 4, 7, 32
LENGTH = 256


@lru_cache
def asked():
    """(config, transformers' model and inputs, our parameters, tokens, video) of one prompt."""
    config = reference.small_config(tied=False)
    config = replace(config, tokens=replace(config.tokens, eos=(reference.VOCAB - 1,)))
    theirs = reference.torch_model(config)
    batch = reference.make_batch(config, [[BEFORE, VIDEO, AFTER]])
    inputs = reference.torch_inputs(theirs, config, batch)
    params = reference.params_from_torch(dict(theirs.named_parameters()), config)
    patches = Patches(batch.pixels[0], VIDEO.grid, reference.SECONDS_PER_GRID, np.zeros(0), np.zeros(0, np.int64))
    return config, theirs, inputs, params, batch.tokens[0], patches


def positions_of_4_49(length):
    """As that release writes them, by hand: the text after the video begins beyond its last temporal position."""
    t, h, w = VIDEO.grid[0], VIDEO.grid[1] // 2, VIDEO.grid[2] // 2
    start = BEFORE + 1  # after vision_start
    video = [(start + 3 * k, start + y, start + x) for k in range(t) for y in range(h) for x in range(w)]
    text = start + 3 * (t - 1) + 1 + np.arange(length - start - len(video))
    every_axis = [(n, n, n) for n in (*range(start), *text)]
    return np.array([*every_axis[:start], *video, *every_axis[start:]]).T


@pytest.mark.parametrize("rule", ["max", "grid"])
def test_greedy_tokens_are_those_of_transformers_and_are_learnt_where_they_were_decoded(rule):
    config, theirs, inputs, params, tokens, patches = asked()
    positions, following = mrope_positions(
        tokens, [patches.grid], [patches.seconds_per_grid], config.tokens, config.vision, text_after_media=rule
    )
    if rule == "max":
        np.testing.assert_array_equal(positions, positions_of_4_49(len(tokens)))
        assert following == positions.max() + 1 > 120
        given = torch.from_numpy(np.stack([np.arange(len(tokens)), *positions]))[:, None].long()
        inputs = {**inputs, "position_ids": given}
    else:
        assert following < 20 < positions.max()
    with torch.no_grad():
        expected = theirs.generate(**inputs, do_sample=False, max_new_tokens=ANSWER)[0, len(tokens) :].numpy()
    assert len(set(expected.tolist())) > 8

    is_video = tokens == reference.VIDEO
    prompt = Sequence(
        id="long",
        tokens=tokens,
        positions=positions,
        loss_mask=np.zeros(len(tokens), bool),
        visual_index=np.where(is_video, np.cumsum(is_video) - 1, -1).astype(np.int32),
        patches=(patches,),
        next_position=following,
    )
    options = BatchOptions(batch_size=1, length_buckets=(LENGTH,))
    banned = np.zeros(reference.VOCAB, bool)
    sampling = SamplingOptions(max_tokens=ANSWER)
    answer = generate(params, config, collate([prompt], options, config), sampling, row_keys(0, [0]), banned)
    np.testing.assert_array_equal(answer.tokens[0], expected)

    # What was decoded is learnt at the same positions, so that it has the same log-probs: in a row, and in a group.
    rollout = Rollout(answer.tokens[0], answer.log_probs[0], np.zeros(ANSWER), False)
    row = collate(separate_rows(prompt, [rollout]), options, config)
    log_probs, mask = jax.jit(partial(row_log_probs, config=config))(params, batch=row)
    np.testing.assert_allclose(np.asarray(log_probs)[np.asarray(mask)], answer.log_probs[0], atol=1e-4)
    groups = collate_groups([prompt], [[rollout]], options, config)
    in_group = jax.jit(partial(group_log_probs, config=config))(params, batch=groups)
    np.testing.assert_allclose(jnp.ravel(in_group), answer.log_probs[0], atol=1e-4)
