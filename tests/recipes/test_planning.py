"""`jvlmm plan`: programs compiled for slices that are not here, and what does not go together."""

import importlib.util
import json
from pathlib import Path

import jax
import pytest

from jvlmm.cli.main import main
from jvlmm.errors import ConfigError
from jvlmm.recipes.planning import model_shape, plan_recipe
from jvlmm.sharding.mesh import MeshOptions, make_mesh
from jvlmm.sharding.topologies import parse_topology, topology_devices

RECIPE = """
from jvlmm.recipes.recipe import Recipe
from jvlmm.recipes.sources import VisionOptions
from jvlmm.recipes.training import SFT
from jvlmm.sharding.mesh import MeshOptions
from jvlmm.training.lora import LoraOptions
from jvlmm.video.budget import PixelOptions


def recipe():
    lora = None
    pixels = PixelOptions(video_min_pixels=784, video_max_pixels=224 * 224)
    vision = VisionOptions(pixels=pixels, patch_buckets=(16 * 1024,))
    mesh = MeshOptions(data=1, fsdp=-1)
    shapes = {"batch_size": 16, "length_buckets": (512,), "vision": vision}
    sft = SFT(model="small", mesh=mesh, remat="full", lora=lora, **shapes)
    return Recipe(name="plan", workdir="runs/plan", stages=(sft,))
"""
BUDGETS = json.loads((Path(__file__).parent / "tpu_budgets.json").read_text())
needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs the TPU compiler: pip install 'jvlmm[tpu]'"
)


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.py"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def effort(case):
    """One case is compiled as users compile, the others with the little effort of the tests, which keeps more."""
    name = "jax_exec_time_optimization_effort"
    little = getattr(jax.config, name)
    jax.config.update(name, 0.0 if case.get("full_effort") else little)
    yield
    jax.config.update(name, little)


@needs_compiler
@pytest.mark.parametrize(
    "case",
    BUDGETS,
    ids=lambda case: " ".join([case["topology"], *case["overrides"], *["LoRA"] * case.get("lora", False)]),
)
def test_temporaries_keep_to_their_budget(recipe, effort, case):
    if case.get("lora"):
        recipe.write_text(RECIPE.replace("lora = None", "lora = LoraOptions(rank=8)"))
    plan = plan_recipe(recipe, case["topology"], tuple(case["overrides"]))
    (program,) = plan["programs"]
    assert program["fits"] and program["name"] == "sft.train_step"
    assert 0 < program["headroom_gib"] < program["capacity_gib"]
    assert program["collectives_gib"] and 0 < program["roofline_mfu"] <= 1
    assert (program["host_gib"] > 0) == ("sft.remat=offload" in case["overrides"])
    budget, used = case["temporaries_gib"], program["temporaries_gib"]
    assert used <= 1.1 * budget, f"{case}: now {used} GiB; find out why, or write a new budget down"
    assert used >= 0.8 * budget, f"{case}: now {used} GiB; write the smaller budget down"


@needs_compiler
def test_an_axis_may_be_smaller_than_every_side_of_the_slice():
    mesh = make_mesh(MeshOptions(data=1, fsdp=-1, tensor=2), topology_devices(parse_topology("v5p:4x4x4")))
    assert mesh.devices.shape == (1, 32, 2, 1)


@needs_compiler
def test_what_does_not_fit_ends_with_1_and_names_a_knob(recipe, capsys):
    assert main(["plan", str(recipe), "--topology", "v5e:2x2", "sft.batch_size=1024", "sft.remat=none"]) == 1
    told = capsys.readouterr().out
    assert "sft.train_step: temporaries take most: lower batch_size" in told


@needs_compiler
def test_a_slice_that_does_not_exist_is_refused(recipe):
    with pytest.raises(ConfigError, match="--topology v5p:1x1x7 cannot be made.*ask for a slice that exists"):
        plan_recipe(recipe, "v5p:1x1x7")


@needs_compiler
@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (("sft.batch_size=24",), "batch_size = 24 does not divide over the 16 devices"),
        (("sft.mesh.fsdp=3",), "does not fit 16 device"),
        (("sft.mesh.fsdp=8", "sft.mesh.tensor=2", "sft.mesh.context=3"), "does not fit 16 device"),
        (("sft.vision.patch_buckets=",), "without buckets the largest batch is not known"),
    ],
)
def test_a_recipe_that_does_not_suit_the_slice_is_refused(recipe, overrides, told):
    with pytest.raises(ConfigError, match=told):
        plan_recipe(recipe, "v5e:4x4", overrides)


def test_shapes_of_released_checkpoints_are_known_by_name():
    assert model_shape("weights/Qwen2.5-VL-7B-Instruct").text.hidden_size == 3584
    with pytest.raises(ConfigError, match="'Qwen2-VL' is no checkpoint folder.*a preset: tiny"):
        model_shape("Qwen2-VL")
