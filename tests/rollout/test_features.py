"""Every image and video is encoded once, and kept as long as there is room."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from jvlmm.data.batch import BatchOptions, collate
from jvlmm.data.example import Example, Media
from jvlmm.models.qwen2_5_vl import encode_vision
from jvlmm.rollout.features import VisualFeatures

OPTIONS = BatchOptions(batch_size=4, length_buckets=(128,))


def ask(name, *media):
    kinds = {"png": "image", "mp4": "video"}
    return Example(name, "What is it?", "", "text", tuple(Media(kinds[file[-3:]], file) for file in media))


@pytest.fixture(scope="module")
def prompts(processor):
    """Three videos and an image among five prompts."""
    asked = [
        ask("text"),
        ask("video", "1.mp4"),
        ask("again", "1.mp4"),
        ask("both", "2.png", "3.mp4"),
        ask("other", "4.mp4", "1.mp4"),
    ]
    return [processor.prompt(example) for example in asked]


def test_features_are_those_of_the_batch_in_the_order_of_placeholders(params, config, prompts):
    features = VisualFeatures(config, OPTIONS).of(params, prompts)
    for prompt, found in zip(prompts, features, strict=True):
        wanted = prompt.visual_index >= 0
        assert found.shape == (wanted.sum(), config.text.hidden_size)
        if wanted.any():
            batch = collate([prompt], OPTIONS, config)
            expected = np.asarray(encode_vision(params, config, batch.vision))[batch.visual_index[0, : prompt.length]]
            np.testing.assert_allclose(found[prompt.visual_index[wanted]], expected[wanted], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", [{"patch_buckets": (64, 256)}, {"fold": True}], ids=["buckets", "fold"])
def test_shapes_change_nothing(params, config, prompts, options):
    expected = VisualFeatures(config, OPTIONS).of(params, prompts)
    found = VisualFeatures(config, replace(OPTIONS, **options)).of(params, prompts)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, expected)


def test_each_distinct_medium_is_encoded_once(params, config, prompts):
    features = VisualFeatures(config, OPTIONS)
    found = features.of(params, prompts)
    assert (features.encoded, features.asked) == (4, 6)
    np.testing.assert_array_equal(found[1], found[2])
    assert features.bytes == 0, "nothing stays without room"
    features.of(params, prompts[:2])
    assert features.encoded == 5


def test_media_of_equal_pixels_in_other_shapes_are_others(params, config, prompts):
    (video,) = prompts[1].patches
    flat = replace(video, grid=(1, video.grid[0] * video.grid[1], video.grid[2]))
    assert len(flat.pixels) == len(video.pixels)
    features = VisualFeatures(config, OPTIONS)
    first, second = features.of(params, [prompts[1], replace(prompts[1], patches=(flat,))])
    assert features.encoded == 2 and np.abs(first - second).max() > 1e-3


def test_what_fits_is_kept_and_the_longest_unused_goes_first(params, config, prompts):
    probe = VisualFeatures(config, OPTIONS, max_bytes=1 << 30)
    probe.of(params, prompts)
    video = probe.of(params, prompts[1:2])[0].nbytes
    assert probe.encoded == 4 and 3 * video < probe.bytes < 4 * video
    image = probe.bytes - 3 * video
    features = VisualFeatures(config, OPTIONS, max_bytes=2 * video + image)
    features.of(params, prompts[1:2])  # 1
    features.of(params, prompts[3:4])  # 2, 3
    assert features.bytes == 2 * video + image and features.encoded == 3
    features.of(params, prompts[1:2])  # 1 is used again …
    features.of(params, prompts[4:5])  # … so that 4 takes the places of 2 and 3
    assert features.encoded == 4 and features.bytes == 2 * video
    features.of(params, prompts[1:2])
    assert features.encoded == 4
    features.of(params, prompts[3:4])
    assert features.encoded == 6


def test_what_is_forgotten_is_encoded_by_the_tower_that_is_now(params, config, prompts):
    features = VisualFeatures(config, OPTIONS, max_bytes=1 << 30)
    before = features.of(params, prompts[1:2])[0]
    changed = {**params, "vision": jax.tree.map(lambda x: 0.5 * x, params["vision"])}
    np.testing.assert_array_equal(features.of(changed, prompts[1:2])[0], before)
    features.forget()
    assert features.bytes == 0
    assert np.abs(features.of(changed, prompts[1:2])[0] - before).max() > 1e-3
