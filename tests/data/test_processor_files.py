"""What a checkpoint's processor files say about its media."""

import json

import pytest

from jvlmm.data.processor_files import checkpoint_pixels, checkpoint_timestamps, write_timestamps
from jvlmm.errors import CheckpointError
from jvlmm.video.budget import PixelOptions

IMAGES, VIDEOS = "preprocessor_config.json", "video_preprocessor_config.json"


def test_a_checkpoint_narrows_the_budget_and_does_not_widen_it(tmp_path):
    default = PixelOptions()
    assert checkpoint_pixels(tmp_path) == default
    (tmp_path / IMAGES).write_text(json.dumps({"min_pixels": 784, "max_pixels": 10**9}))
    (tmp_path / VIDEOS).write_text(json.dumps({"size": {"shortest_edge": 1568, "longest_edge": 3136}}))
    assert checkpoint_pixels(tmp_path) == PixelOptions(784, default.max_pixels, 1568, 3136)


def test_timestamps_are_stated_beside_the_other_settings(tmp_path):
    assert checkpoint_timestamps(tmp_path) == ""
    (tmp_path / VIDEOS).write_text('{"max_pixels": 7056}')
    write_timestamps(tmp_path, "{:.1f}")
    assert checkpoint_timestamps(tmp_path) == "{:.1f}"
    assert checkpoint_pixels(tmp_path).video_max_pixels >= 7056
    assert json.loads((tmp_path / VIDEOS).read_text())["max_pixels"] == 7056


@pytest.mark.parametrize("text", ["{", "[1]", '{"size": 7}'])
def test_a_file_that_is_no_configuration_is_named(tmp_path, text):
    (tmp_path / IMAGES).write_text(text)
    with pytest.raises(CheckpointError, match=f"{IMAGES}: not a processor's configuration .*; restore the file"):
        checkpoint_pixels(tmp_path)
