"""The whole way on a small scale: drawn clips, SFT, evaluation, export; killed and resumed to the bit."""

import json
from pathlib import Path

import jax
import pytest
from recipe_processes import finish, kill_after, start, write_model

from jvlmm.data.moving_shapes import MovingShapesOptions, build
from jvlmm.data.processor_files import checkpoint_processing
from jvlmm.data.tokenizer import ChatTokenizer
from jvlmm.models.huggingface import load_config, load_params
from jvlmm.recipes.sources import VisionOptions
from jvlmm.recipes.training import SFT
from jvlmm.sharding.mesh import MeshOptions, make_mesh

CONFIG = """
from jvlmm.recipes.evaluating import Evaluate
from jvlmm.recipes.recipe import Recipe
from jvlmm.recipes.sources import Source, VisionOptions
from jvlmm.recipes.training import SFT
from jvlmm.rollout.sampling import SamplingOptions
from jvlmm.training.optimizer import OptimizerOptions
from jvlmm.video.budget import PixelOptions

DATA, MODEL = {data!r}, {model!r}
VISION = VisionOptions(pixels=PixelOptions(784, 7056, 784, 7056), timestamps="{{:.0f}}s", workers=0, fold=True)


def recipe():
    return Recipe(
        name="small",
        workdir="unused",
        stages=(
            SFT(
                model=MODEL,
                sources=(
                    Source(DATA, question_types=("attribute", "position")),
                    Source(DATA, view="captions", limit=8, turns=2),
                ),
                steps=9,
                batch_size=4,
                length_buckets=(320,),
                vision=VISION,
                optimizer=OptimizerOptions(learning_rate=1e-3),
                log_every=1,
                checkpoint_every=2,
            ),
            Evaluate(
                name="after",
                model="stage:sft",
                sources=(Source(DATA, split="test", limit=6),),
                batch_size=4,
                length_buckets=(320,),
                vision=VISION,
                sampling=SamplingOptions(max_tokens=8),
            ),
        ),
    )
"""
KILL_AT = (1, 4, 8)  # before the first checkpoint, between two, near the end


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    counts = {f"{split}_{kind}": 0 for split in ("validation", "test_hard") for kind in ("clips", "images")}
    build(folder / "data", MovingShapesOptions(train_clips=10, train_images=2, test_clips=3, test_images=1, **counts))
    write_model(folder / "model")
    path = folder / "small.py"
    path.write_text(CONFIG.format(data=str(folder / "data"), model=str(folder / "model")))
    return path


def losses(workdir: Path) -> dict[int, float]:
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return {record["step"]: record["loss"] for record in map(json.loads, lines) if record["stage"] == "sft"}


def steps_logged(workdir: Path) -> int:
    path = workdir / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("uninterrupted")
    return workdir, finish(start(config, workdir))


@pytest.mark.parametrize("pack", [False, True])
def test_packing_is_a_switch_of_the_stage(pack):
    mesh = make_mesh(MeshOptions(), jax.devices()[:1])
    assert SFT(pack=pack, vision=VisionOptions(patch_buckets=(64,))).batch(mesh).pack == pack


def test_a_run_leaves_what_its_contract_names(finished):
    workdir, result = finished
    assert set(losses(workdir)) == set(range(1, 10))
    accuracy = result["evaluations"]["after"]["accuracy"]
    assert 0 <= accuracy["overall"] <= 1 and result["workdir"] == str(workdir)
    predictions = [json.loads(line) for line in (workdir / "predictions/after.jsonl").read_text().splitlines()]
    assert len(predictions) == 6 and all(p["visual_tokens"] > 0 and "error" not in p for p in predictions)
    for name in ("config.json", "manifest.json", "checkpoints", "tensorboard"):
        assert (workdir / name).exists(), name


def test_the_export_is_an_ordinary_checkpoint(finished):
    folder = finished[0] / "models/sft"
    config = load_config(folder)
    assert set(load_params(folder, config)) == {"vision", "merger", "decoder"}
    assert (ChatTokenizer.from_pretrained(folder).length, config.text.vocab_size) == (623, 624), "as it began"
    shown = VisionOptions().shown("think", 8192, folder)
    assert checkpoint_processing(folder).style == "think" and shown.text_after_media == "max"
    assert shown.timestamps == "{:.0f}s" and shown.pixels.video_max_pixels == 7056, "it was trained with these"


def test_a_run_killed_three_times_repeats_every_loss_to_the_bit(config, finished, tmp_path):
    for step in KILL_AT:
        kill_after(start(config, tmp_path), step, lambda: steps_logged(tmp_path))
    finish(start(config, tmp_path))
    assert losses(tmp_path) == losses(finished[0])
