"""What a checkpoint's processor files say about its media."""

import json

import pytest

from jvlmm.data.processor import ProcessorOptions
from jvlmm.data.processor_files import checkpoint_pixels, checkpoint_timestamps, write_timestamps
from jvlmm.errors import CheckpointError, ConfigError
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


@pytest.mark.parametrize(
    "form",
    ["{:>2000000000}", "{:.2000000000f}", "{:f>99999999}", "{0.__class__}", "{:d}", "{} {}", "{", "s" * 99, 3, [1]],
)
def test_a_form_of_times_that_is_none_is_named_at_once(tmp_path, form):
    """Also as an option; a wide format would be made in full before anything could look at it."""
    path = tmp_path / "video_preprocessor_config.json"
    path.write_text(json.dumps({"timestamps": form}))
    with pytest.raises(CheckpointError, match=f"{path}: timestamps is .*allowed"):
        checkpoint_timestamps(tmp_path)
    if isinstance(form, str):
        with pytest.raises(ConfigError, match="timestamps=.*tells no time"):
            ProcessorOptions(timestamps=form)


@pytest.mark.parametrize("form", ["{}", "{:.1f}", "{:.0f}s", "<{:.1f} seconds>", "{0:05.1f}", "t={:g}"])
def test_forms_of_times_are_read(tmp_path, form):
    (tmp_path / "video_preprocessor_config.json").write_text(json.dumps({"timestamps": form}))
    assert checkpoint_timestamps(tmp_path) == form == ProcessorOptions(timestamps=form).timestamps
