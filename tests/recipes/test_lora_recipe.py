"""The SFT stage with LoRA: what it leaves behind, resumed to the bit, and planned."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import jvlmm
from jvlmm.config import apply_overrides, from_json, to_json
from jvlmm.errors import ConfigError
from jvlmm.models.huggingface import load_config, load_params, save_checkpoint
from jvlmm.models.qwen2_5_vl import abstract_params
from jvlmm.recipes import reinforcing
from jvlmm.recipes.recipe import Recipe, Run, load_recipe
from jvlmm.recipes.sources import Source, VisionOptions
from jvlmm.recipes.training import SFT
from jvlmm.sharding.mesh import MeshOptions
from jvlmm.training.lora import LoraOptions
from jvlmm.training.optimizer import OptimizerOptions
from jvlmm.training.policy import UpdateOptions
from jvlmm.video.budget import PixelOptions

TINY = Path(jvlmm.__file__).parent / "assets" / "tiny"
LORA = LoraOptions(rank=2, alpha=6.0, targets=("decoder/layers_*/self_attn/*",))
STEPS = 3


@pytest.fixture(scope="module")
def config():
    config = load_config(TINY)
    vision, text = replace(config.vision, depth=1, fullatt_block_indexes=(0,)), replace(config.text, num_layers=2)
    return replace(config, vision=vision, text=text)


@pytest.fixture(scope="module")
def stage(config, tmp_path_factory) -> SFT:
    """Of a small random model and texts without media."""
    folder = tmp_path_factory.mktemp("lora")
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(0.1, 0.1, leaf.shape).astype(np.float32), abstract_params(config)[0])
    save_checkpoint(folder / "base", params, config, "float32", source_dir=TINY)
    texts = [
        {"question": f"How many are {n} and one?", "answer": str(n + 1), "answer_type": "number"} for n in range(9)
    ]
    rows = [{"id": str(n), **row, "media": [], "response": f"It is {n + 1}."} for n, row in enumerate(texts)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return SFT(
        model=str(folder / "base"),
        sources=(Source(str(folder / "rows.jsonl")),),
        style="direct",
        steps=STEPS,
        batch_size=8,
        length_buckets=(64,),
        vision=VisionOptions(workers=0, pixels=PixelOptions(784, 7056, 784, 7056), patch_buckets=(64,)),
        optimizer=OptimizerOptions(learning_rate=1e-2, schedule="constant"),
        lora=LORA,
        mesh=MeshOptions(data=1, fsdp=-1),
        log_every=1,
        checkpoint_every=1,
        export_dtype="float32",
    )


@pytest.fixture(scope="module")
def finished(stage, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished")
    return workdir, stage.run(Run(workdir, seed=1))


def test_the_export_is_the_base_with_the_adapter(stage, finished):
    workdir, result = finished
    assert (result["path"], result["adapter"]) == ("models/sft", "adapters/sft")
    base, merged = (load_file(Path(f) / "model.safetensors") for f in (stage.model, workdir / "models/sft"))
    adapter = load_file(workdir / "adapters/sft/adapter_model.safetensors")
    changed = {key for key in base if np.any(base[key] != merged[key])}
    assert len(changed) == 8 and len(adapter) == 16
    key = "model.layers.1.self_attn.o_proj.weight"
    a, b = (adapter[f"base_model.model.model.language_model.{key[6:-7]}.lora_{x}.weight"] for x in "AB")
    np.testing.assert_allclose(merged[key], base[key] + 3 * b @ a, atol=1e-6)


def test_a_stage_begins_with_an_adapter_merged_and_leaves_one_of_the_same_base(stage, finished, tmp_path):
    """At a learning rate of 0 the model is the merged one; its adapter is the sum, which belongs to the base folder."""
    unchanged = replace(stage, optimizer=replace(stage.optimizer, learning_rate=0.0), steps=1)
    second = replace(unchanged, name="second", adapter="stage:sft", lora=replace(LORA, rank=3, alpha=3.0))
    second.run(Run(tmp_path, seed=2, results={"sft": {"adapter": str(finished[0] / "adapters/sft")}}))
    base, first, found = (
        load_file(folder / "model.safetensors")
        for folder in (Path(stage.model), finished[0] / "models/sft", tmp_path / "models/second")
    )
    assert any(np.any(base[key] != first[key]) for key in base)
    for key, value in first.items():
        np.testing.assert_allclose(found[key], value, atol=1e-6, err_msg=key)
    options = json.loads((tmp_path / "adapters/second/adapter_config.json").read_text())
    assert options["base_model_name_or_path"] == stage.model and set(options["rank_pattern"].values()) == {5}
    config = load_config(stage.model)
    again = load_params(stage.model, config, adapter=tmp_path / "adapters/second")
    save_checkpoint(tmp_path / "again", again, config, "float32")
    for key, value in load_file(tmp_path / "again/model.safetensors").items():
        np.testing.assert_allclose(value, first[key], atol=1e-6, err_msg=key)


def test_grpo_begins_with_the_adapter_it_names(stage, finished, tmp_path, monkeypatch):
    class Begun(Exception):
        """Its argument is the adapter that was to be merged."""

    def begin(folder, config, shardings=None, adapter=None):
        raise Begun(adapter)

    monkeypatch.setattr(reinforcing, "load_params", begin)
    options = {"vision": stage.vision, "length_buckets": (64,), "prompts": 8, "update": UpdateOptions(rows=8)}
    policy = reinforcing.GRPO(model=stage.model, sources=stage.sources, style="direct", **options)
    adapter = str(finished[0] / "adapters/sft")
    for given, expected in (("", None), (adapter, Path(adapter))):
        with pytest.raises(Begun) as begun:
            replace(policy, adapter=given).run(Run(tmp_path, seed=1))
        assert begun.value.args == (expected,)


def test_a_stage_that_left_no_adapter_is_named(stage, tmp_path):
    run = Run(tmp_path, seed=1, results={"full": {"path": "models/full"}})
    with pytest.raises(ConfigError, match="'stage:full': stage full left no adapter"):
        replace(stage, adapter="stage:full").run(run)


def test_resumed_after_two_of_three_steps_it_ends_in_the_same_bits(stage, finished, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(finished[0], workdir)
    for path in (f"checkpoints/sft/{STEPS}", "models", "adapters"):
        shutil.rmtree(workdir / path)
    stage.run(Run(workdir, seed=1))
    for path in ("adapters/sft/adapter_model.safetensors", "models/sft/model.safetensors"):
        assert (workdir / path).read_bytes() == (finished[0] / path).read_bytes()
    losses = [
        [record["loss"] for record in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())]
        for folder in (workdir, finished[0])
    ]
    assert losses[0] == losses[1] and len(losses[0]) == STEPS


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_it_is_planned_from_shapes(stage, config, platform):
    """On accelerators layers are scanned, and frozen weights kept in bfloat16."""
    devices = jax.devices()[:1]
    (program,) = stage.programs(config, devices, platform)
    (whole,) = replace(stage, lora=None).programs(config, devices, platform)
    state = program.trace().in_avals[0][0]
    dtypes = {path[0].key: leaf.dtype.name for path, leaf in jax.tree_util.tree_flatten_with_path(state.params)[0]}
    base = "float32" if platform == "cpu" else "bfloat16"
    assert dtypes == {"vision": base, "merger": base, "decoder": base, "adapters": "float32"}
    assert 0.6 < program.model_flops / whole.model_flops < 0.7


def test_options_are_overridden_and_read_back(stage):
    recipe = Recipe("r", (replace(stage, lora=None),), "")
    assert apply_overrides(recipe, ["sft.lora.rank=8"]).stages[0].lora == LoraOptions(rank=8)
    with pytest.raises(ConfigError, match="lora.rank = 0"):
        apply_overrides(recipe, ["sft.lora.rank=0"])
    assert from_json(SFT, to_json(stage)) == stage
    assert apply_overrides(Recipe("r", (stage,), ""), ["sft.lora=none"]).stages[0].lora is None


def test_the_recipe_of_7b_adapts_every_projection_of_the_decoder():
    folder = Path(jvlmm.__file__).parents[1] / "configs"
    plain, lora = (load_recipe(folder / f"sft_qwen2_5_vl_7b{name}.py").stages[0] for name in ("", "_lora"))
    assert lora.lora is not None
    assert replace(lora, lora=None, optimizer=plain.optimizer) == plain
