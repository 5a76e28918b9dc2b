"""What a checkpoint folder says about questions and media, in every layout, and what is set over it."""

import json
from dataclasses import fields, replace
from functools import partial

import numpy as np
import pytest

import jvlmm
from jvlmm.config import naming_options
from jvlmm.data.positions import mrope_positions
from jvlmm.data.processor import ProcessorOptions
from jvlmm.data.processor_files import (
    PROCESSING,
    checkpoint_processing,
    difference,
    processor_options,
    write_processing,
    write_timestamps,
)
from jvlmm.errors import CheckpointError, ConfigError
from jvlmm.models.config import SpecialTokens, VisionConfig
from jvlmm.models.huggingface.processors import normalisation
from jvlmm.recipes.sources import VisionOptions
from jvlmm.recipes.training import SFT
from jvlmm.video.budget import DEFAULT_PIXELS, PixelOptions, image_size, video_frame_size
from jvlmm.video.overrides import FrameOverrides, PixelOverrides, overriding
from jvlmm.video.sampling import FrameOptions

IMAGES, VIDEOS, BOTH = "preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json"
PUBLISHED = {"min_pixels": 3136, "max_pixels": 12845056}
SIZE = {"size": {"shortest_edge": 3136, "longest_edge": 12845056}}
PATCHES = {"patch_size": 14, "temporal_patch_size": 2, "merge_size": 2}
SPECIAL = SpecialTokens(image=1, video=2, vision_start=3, vision_end=4, eos=(5,), pad=6)
MEAN, STD = list(VisionConfig.image_mean), list(VisionConfig.image_std)


def folder(path, **files):
    """A folder of these files, their names without .json."""
    path.mkdir(exist_ok=True)
    for name, values in files.items():
        (path / f"{name}.json").write_text(json.dumps(values), encoding="utf-8")
    return path


def pixels_of(path):
    return processor_options(path, "think", 8192).pixels


LAYOUTS = {
    "nothing": ({}, DEFAULT_PIXELS),
    "until 4.51": ({"preprocessor_config": PUBLISHED}, replace(DEFAULT_PIXELS, max_pixels=12845056)),
    "4.52 to 4.57": (
        {"preprocessor_config": SIZE, "video_preprocessor_config": SIZE},
        replace(DEFAULT_PIXELS, max_pixels=12845056, video_min_pixels=3136),
    ),
    "5": (
        {
            "processor_config": {
                "image_processor": SIZE,
                "video_processor": {"size": {"shortest_edge": 1568, "longest_edge": 3136}},
                "processor_class": "Qwen2_5_VLProcessor",
            }
        },
        replace(DEFAULT_PIXELS, max_pixels=12845056, video_min_pixels=1568, video_max_pixels=3136),
    ),
    "5 beside older files": (
        {
            "processor_config": {"image_processor": {"size": {"shortest_edge": 784, "longest_edge": 7056}}},
            "preprocessor_config": PUBLISHED,
            "video_preprocessor_config": {"max_pixels": 200704},
        },
        PixelOptions(784, 7056, 100352, 200704),
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_of_processor_files_is_read(tmp_path, name):
    files, expected = LAYOUTS[name]
    assert pixels_of(folder(tmp_path, **files)) == expected


def test_an_image_keeps_the_checkpoints_size_and_a_frame_its_own_least(tmp_path):
    """2000 x 1500 pixels: 3,834 tokens, not 1,230. A frame of 140 x 140 in pairs: 25 tokens where the file says so."""
    pixels = pixels_of(folder(tmp_path, preprocessor_config=SIZE, video_preprocessor_config=SIZE))
    assert np.prod(image_size(1500, 2000, pixels)) // 784 == 3834
    assert np.prod(image_size(1500, 2000, DEFAULT_PIXELS)) // 784 == 1230
    assert np.prod(video_frame_size(8, 140, 140, pixels)) // 784 == 25
    assert np.prod(video_frame_size(8, 140, 140, DEFAULT_PIXELS)) // 784 == 144


def test_training_and_asking_see_the_same_and_what_is_set_wins(tmp_path):
    """One rule: what is set, else what training wrote, else the processor files, else the default."""
    path = folder(tmp_path, preprocessor_config=SIZE, video_preprocessor_config=SIZE)
    assert VisionOptions().shown("think", 8192, path) == processor_options(path, "think", 8192)
    set_here = VisionOptions(pixels=PixelOverrides(video_max_pixels=50_176), text_after_media="grid")
    shown = set_here.shown("think", 8192, path)
    assert shown.pixels == replace(pixels_of(path), video_max_pixels=50_176) and shown.text_after_media == "grid"
    narrow = VisionOptions(pixels=PixelOverrides(video_max_pixels=784)).shown("think", 8192, path)
    assert (narrow.pixels.video_min_pixels, narrow.pixels.video_max_pixels) == (784, 784)
    complete = VisionOptions(pixels=PixelOptions(), frames=FrameOptions(fps=1)).shown("think", 8192, path)
    assert complete.pixels == PixelOptions() and complete.frames == FrameOptions(fps=1)


def test_what_training_showed_is_taken_from_its_export_and_differences_are_said(tmp_path, capsys):
    path = folder(tmp_path, preprocessor_config=SIZE)
    trained = VisionOptions(
        frames=FrameOptions(num_frames=16),
        pixels=PixelOverrides(video_max_pixels=200_704),
        timestamps="{:.0f}s",
        coordinates="per-mille",
    ).shown("direct", 4096, path)
    assert difference(path, trained) == ""
    write_processing(path, trained)
    assert checkpoint_processing(path).style == "direct"
    later = VisionOptions()
    assert later.processor("direct", 4096, path) == trained and capsys.readouterr().err == ""
    otherwise = VisionOptions(frames=FrameOverrides(fps=1.0), text_after_media="grid", coordinates="shown")
    by_rate = otherwise.processor("think", 4096, path)
    assert by_rate.frames == FrameOptions(fps=1.0) and by_rate.pixels == trained.pixels
    (line,) = capsys.readouterr().err.splitlines()
    for told in (
        "style=think instead of direct",
        "num_frames=none instead of 16",
        "text_after_media=grid instead of max",
        "coordinates=shown instead of per-mille",
    ):
        assert told in line, line


def test_an_adapter_states_what_it_was_trained_with(tmp_path):
    base, adapter = folder(tmp_path / "base", preprocessor_config=SIZE), folder(tmp_path / "adapter")
    plain = processor_options(base, "think", 4096)
    assert processor_options(base, "think", 4096, adapter=adapter) == plain, "one of others states nothing"
    write_processing(base, replace(plain, text_after_media="grid"))
    trained = replace(plain, frames=FrameOptions(fps=1.0), style="direct")
    write_processing(adapter, trained)
    assert processor_options(base, "direct", 4096, adapter=adapter) == trained
    assert str(adapter) in difference(base, plain, adapter) and "style=think" in difference(base, plain, adapter)


def test_frames_by_rate_and_by_number_take_each_others_place():
    uniform = FrameOptions(sampler="uniform", num_frames=16)
    assert FrameOverrides(fps=1.0).over(uniform) == FrameOptions(fps=1.0)
    assert FrameOverrides(num_frames=8).over(uniform) == FrameOptions(sampler="uniform", num_frames=8)
    assert FrameOverrides().over(uniform) == uniform
    assert FrameOverrides(max_frames=2).over(FrameOptions()) == FrameOptions(min_frames=2, max_frames=2)
    with pytest.raises(ConfigError, match=r"^frames\.max_frames=8 has no effect, .* 16 frames .* frames\.num_frames"):
        overriding(FrameOverrides(max_frames=8), uniform)
    assert overriding(FrameOverrides(fps=1.0, max_frames=8), uniform) == FrameOptions(fps=1.0, max_frames=8)
    for overrides, options in ((FrameOverrides, FrameOptions), (PixelOverrides, PixelOptions)):
        assert [field.name for field in fields(overrides)] == [field.name for field in fields(options)]


def test_timestamps_are_read_where_they_were_written_before(tmp_path):
    path = folder(tmp_path, video_preprocessor_config={"max_pixels": 7056, "timestamps": "{:.0f}"})
    assert checkpoint_processing(path).timestamps == "{:.0f}"
    write_timestamps(path, "{:.1f}")
    assert checkpoint_processing(path).timestamps == "{:.1f}" and checkpoint_processing(path).frames == FrameOverrides()


def test_the_base_checkpoint_says_times_so_that_positions_do_not_depend_on_the_rule():
    """What it has learnt stays what it was: each temporal patch is a medium of its own."""
    base = f"{jvlmm.__path__[0]}/assets/tiny"
    shown = processor_options(base, "think", 8192)
    assert (shown.timestamps, shown.pixels) == ("{:.1f}", PixelOptions(784, 7056, 784, 7056))
    vision = VisionConfig()
    for h, w in ((2, 2), (4, 6), (10, 4), (6, 6)):
        patch = [3, *[2] * (h * w // 4), 4]
        tokens = np.array([9, 9, *[token for _ in range(30) for token in (9, *patch)], 9, 9])
        given = tokens, [(1, h, w)] * 30, [0.0] * 30
        one, other = (mrope_positions(*given, SPECIAL, vision, text_after_media=rule) for rule in ("max", "grid"))
        np.testing.assert_array_equal(one[0], other[0])
        assert one[1] == other[1]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"preprocessor_config": {"size": 7}}, r"preprocessor_config.json: not a processor's .*size is 7"),
        ({"preprocessor_config": {"min_pixels": "4"}}, "min_pixels is '4', no positive number of pixels"),
        ({"preprocessor_config": {"min_pixels": 10, "max_pixels": 5}}, "need min_pixels <= max_pixels"),
        ({"processor_config": {"video_processor": [1]}}, "processor_config.json: .*video_processor is"),
        ({"preprocessor_config": [1]}, "preprocessor_config.json: expected a JSON object"),
        ({"jvlmm_processing": {"frames": {"fps": "two"}}}, f"{PROCESSING}: .*frames.fps.*restore the file"),
        ({"jvlmm_processing": {"style": "loud"}}, f"{PROCESSING}: .*'loud' is not one of"),
    ],
)
def test_a_file_that_is_no_configuration_is_named(tmp_path, files, message):
    with pytest.raises(CheckpointError, match=message):
        checkpoint_processing(folder(tmp_path, **files))


def test_a_set_value_out_of_range_is_refused(tmp_path):
    for overrides, message in (
        (partial(PixelOverrides, max_pixels=0), "pixels.max_pixels=0"),
        (partial(PixelOverrides, video_min_pixels=10, video_max_pixels=5), "video_min_pixels=10"),
        (partial(FrameOverrides, fps=0.0), "frames.fps=0.0"),
        (partial(FrameOverrides, sampler="best"), "frames.sampler='best'"),
        (partial(FrameOverrides, sampler="uniform", fps=1.0), "needs frames.num_frames"),
    ):
        with pytest.raises(ConfigError, match=message):
            overrides()
    assert FrameOverrides(sampler="uniform").over(FrameOptions(num_frames=4)).num_frames == 4
    assert processor_options(tmp_path, "think", 8) == ProcessorOptions(style="think", max_length=8)


def test_means_of_every_layout_are_the_towers_or_refused(tmp_path):
    assert normalisation(tmp_path, PATCHES) == {}
    own = {"image_mean": [0.5, 0.5, 0.5], "image_std": 0.5, "rescale_factor": 0.00392156862745098, "resample": 3}
    nested = folder(tmp_path / "nested", processor_config={"image_processor": own, "video_processor": own})
    assert normalisation(nested, PATCHES) == {"image_mean": (0.5,) * 3, "image_std": (0.5,) * 3}
    videos = {"image_mean": MEAN, "image_std": STD}
    for name, other, message in (
        ("mean", videos, r"image_mean of videos is .*make them equal"),
        ("patch", {**own, "patch_size": 16}, "patch_size is 16, the model reads media with 14"),
        ("raw", {**own, "do_normalize": False}, "do_normalize is False, the model reads media with True"),
        ("scale", {**own, "rescale_factor": 1.0}, "rescale_factor is 1.0"),
        ("zero", {**own, "image_std": [1, 0, 1]}, "image_std is"),
    ):
        path = folder(tmp_path / name, preprocessor_config=own, video_preprocessor_config=other)
        with pytest.raises(CheckpointError, match=message):
            normalisation(path, PATCHES)


@pytest.mark.parametrize(
    "form",
    ["{:>2000000000}", "{:.2000000000f}", "{:f>99999999}", "{0.__class__}", "{:d}", "{} {}", "{", "s" * 99, 3, [1]],
)
def test_a_form_of_times_that_is_none_is_named_at_once(tmp_path, form):
    """Also as an option; a wide format would be made in full before anything could look at it."""
    path = tmp_path / "video_preprocessor_config.json"
    path.write_text(json.dumps({"timestamps": form}))
    with pytest.raises(CheckpointError, match=f"{path}: timestamps is .*allowed"):
        checkpoint_processing(tmp_path)
    if isinstance(form, str):
        with pytest.raises(ConfigError, match="timestamps=.*tells no time"):
            ProcessorOptions(timestamps=form)


@pytest.mark.parametrize("form", ["{}", "{:.1f}", "{:.0f}s", "<{:.1f} seconds>", "{0:05.1f}", "t={:g}"])
def test_forms_of_times_are_read(tmp_path, form):
    (tmp_path / "video_preprocessor_config.json").write_text(json.dumps({"timestamps": form}))
    assert checkpoint_processing(tmp_path).timestamps == form == ProcessorOptions(timestamps=form).timestamps


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (VisionOptions(timestamps="abc"), "sft.vision.timestamps='abc'"),
        (VisionOptions(cache_bytes=-1), "sft.vision.cache_"),
    ],
)
def test_an_option_is_named_as_it_is_typed(tmp_path, options, named):
    stage = SFT(name="sft", vision=options)
    with pytest.raises(ConfigError, match=f"^{named}"), naming_options(stage, "sft"):
        stage.vision.shown("think", 64, tmp_path)
