"""Which overrides make a stage fit, and whether a run begins on a device that is too small."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from jvlmm.cli.main import main
from jvlmm.config import apply_overrides
from jvlmm.errors import ConfigError
from jvlmm.recipes import fitting
from jvlmm.recipes.fitting import Devices, check_memory, fitting_overrides, peaks, plan_with_remedies
from jvlmm.recipes.recipe import load_recipe

CONFIGS = Path(__file__).parents[2] / "configs"
RECIPE = Path(__file__).parent / "plan_recipe.py"
GIB = 2**30


@pytest.fixture(scope="module")
def recipe():
    return load_recipe(RECIPE)


def test_the_overrides_make_the_stage_fit_and_keep_the_update(recipe):
    update = recipe.stages[0]
    whole = peaks(recipe, update, Devices(1, "gpu", 0.0), media=True)["sft.train_step"]
    found = fitting_overrides(recipe, update, Devices(1, "gpu", 0.7 * whole))
    assert found
    changed = apply_overrides(recipe, list(found)).stages[0]
    assert changed.batch_size * changed.accumulation == update.batch_size * update.accumulation
    needed = peaks(apply_overrides(recipe, list(found)), changed, Devices(1, "gpu", 0.0), media=True)
    assert needed["sft.train_step"] <= 0.7 * whole


def test_nothing_is_told_where_nothing_helps(recipe):
    assert fitting_overrides(recipe, recipe.stages[0], Devices(1, "gpu", 1000.0)) == ()


@pytest.mark.parametrize("size", ["3b", "7b"])
@pytest.mark.parametrize("card", ["l4:1", "h100:1"])
def test_lora_recipes_fit_one_gpu(size, card):
    plan = plan_with_remedies(CONFIGS / f"sft_qwen2_5_vl_{size}_lora_one_gpu.py", card)
    assert [program["fits"] for program in plan["programs"]] == [True] and plan["fitting"] == {}


def test_a_plan_prints_what_to_type(capsys):
    config = str(CONFIGS / "sft_qwen2_5_vl_7b_lora.py")
    assert main(["plan", config, "--topology", "h100:1"]) == 1
    told = capsys.readouterr().out
    typed = told.rpartition("sft fits, by arithmetic, with ")[2].split()
    assert typed[:2] == ["sft.batch_size=16", "sft.accumulation=2"]
    assert main(["plan", config, "--topology", "h100:1", *typed]) == 0


def test_a_run_is_refused_where_a_device_is_too_small(recipe, monkeypatch):
    """On accelerators only, and by the memory that the device says it has."""
    small = SimpleNamespace(platform="gpu", device_kind="H100", memory_stats=lambda: {"bytes_limit": 0.05 * GIB})
    with pytest.raises(
        ConfigError, match=r"sft\.train_step needs about .* GiB of a device that has 0\.1.*memory-check"
    ):
        check_memory(recipe, [small])
    monkeypatch.setattr(fitting, "peaks", lambda *_, **__: pytest.fail("the memory of a CPU is not checked"))
    check_memory(recipe, [SimpleNamespace(platform="cpu")])


def test_a_large_device_is_not_refused(recipe):
    check_memory(recipe, [SimpleNamespace(platform="gpu", device_kind="NVIDIA H100 80GB HBM3", memory_stats=dict)])
