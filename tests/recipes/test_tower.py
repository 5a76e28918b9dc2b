"""The tower's own stage: it learns, leaves the decoder alone, and continues to the bit after a stop."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest

from jvlmm.data.example import Media
from jvlmm.data.moving_shapes import MovingShapesOptions, build, scenes
from jvlmm.data.processor import decode_patches
from jvlmm.data.processor_files import checkpoint_processing
from jvlmm.errors import ConfigError, JvlmmError
from jvlmm.models.huggingface import load_config, load_params
from jvlmm.models.qwen2_5_vl import encode_vision
from jvlmm.models.vision_inputs import build_vision_inputs
from jvlmm.recipes.moving_shapes import NewModel
from jvlmm.recipes.recipe import Run
from jvlmm.recipes.sources import VisionOptions
from jvlmm.recipes.tower import ClipBatches, PretrainTower
from jvlmm.training.optimizer import OptimizerOptions
from jvlmm.video.budget import PixelOptions

STAGE = PretrainTower(
    model="models/new",
    data="data",
    steps=12,
    batch_size=4,
    vision=VisionOptions(pixels=PixelOptions(784, 7056, 784, 7056), workers=0),
    optimizer=OptimizerOptions(learning_rate=3e-3),
    log_every=1,
    checkpoint_every=4,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tower")
    counts = {f"{split}_{kind}": 0 for split in ("test", "test_hard") for kind in ("clips", "images")}
    options = MovingShapesOptions(train_clips=12, train_images=2, validation_clips=4, validation_images=1, **counts)
    build(folder / "data", options)
    NewModel(data=str(folder / "data"), vocab_size=512).run(Run(folder, 0))
    return folder


def _stage(folder, **changes):
    return replace(STAGE, model=str(folder / "models/new"), data=str(folder / "data"), **changes)


def _losses(workdir):
    records = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return {record["step"]: record["loss"] for record in records}


@pytest.fixture(scope="module")
def trained(folder):
    return _stage(folder).run(Run(folder, 0))


def test_it_learns_and_touches_the_tower_only(folder, trained):
    losses = _losses(folder)
    assert set(losses) == set(range(1, 13)) and losses[12] < losses[1] / 2
    assert 0 <= trained["f1"] <= 1
    new, path = folder / "models/new", folder / trained["path"]
    assert checkpoint_processing(new).timestamps == checkpoint_processing(path).timestamps == "{:.1f}"
    config = load_config(new)
    before, after = load_params(new, config), load_params(path, load_config(path))
    same = jax.tree.map(np.array_equal, before, after)
    assert all(jax.tree.leaves(same["decoder"]))
    assert not any(same["merger"][name]["kernel"] for name in ("fc1", "fc2"))
    assert not same["vision"]["patch_embed"]["kernel"]


def test_features_have_twice_the_size_of_words(folder, trained):
    config = load_config(folder / trained["path"])
    params = load_params(folder / trained["path"], config)
    scene = next(s for s in scenes(folder / "data", "train") if not s.is_image)
    media = Media("video", str(folder / "data" / scene.media))
    shown = STAGE.vision.shown("describe", 8192, folder / trained["path"])
    with STAGE.vision.decoder() as decoder:
        seen = decode_patches(media, decoder, shown.frames, shown.pixels, config.vision)
    vision, _ = build_vision_inputs([seen.pixels], [seen.grid], config.vision)
    features, words = encode_vision(params, config, vision), params["decoder"]["embed"]["embedding"]
    assert np.sqrt(np.mean(features**2) / np.mean(words**2)) == pytest.approx(2, rel=0.2)


def test_clips_that_are_resized_are_refused(folder, tmp_path):
    resized = VisionOptions(pixels=PixelOptions(784, 784, 784, 784), workers=0)
    with pytest.raises(ConfigError, match=r"4 features for 36 cells of a clip; choose vision\.pixels"):
        _stage(folder, vision=resized).run(Run(tmp_path, 0))


def test_it_continues_to_the_bit(folder, trained, tmp_path, monkeypatch):
    draw, calls = ClipBatches.__next__, []

    def draw_seven(batches):
        if len(calls) == 7:
            raise JvlmmError("stopped here")
        calls.append(1)
        return draw(batches)

    monkeypatch.setattr(ClipBatches, "__next__", draw_seven)
    with pytest.raises(JvlmmError, match="stopped here"):
        _stage(folder).run(Run(tmp_path, 0))
    monkeypatch.setattr(ClipBatches, "__next__", draw)
    _stage(folder).run(Run(tmp_path, 0))
    assert _losses(tmp_path) == _losses(folder)
