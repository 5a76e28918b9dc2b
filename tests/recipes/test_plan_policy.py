"""`jvlmm plan` of a GRPO stage: every program of a step, compiled for slices or counted, with what lies beside it."""

import importlib.util
from pathlib import Path

import jax
import pytest

from jvlmm.config import apply_overrides
from jvlmm.errors import ConfigError
from jvlmm.models.presets import PRESETS
from jvlmm.models.qwen2_5_vl import abstract_params
from jvlmm.recipes.planning import plan_recipe, programs_of
from jvlmm.recipes.recipe import load_recipe

needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs the TPU compiler: pip install 'jvlmm[tpu]'"
)
RECIPE = """
from jvlmm.objectives.profiles import PROFILES
from jvlmm.recipes.recipe import Recipe
from jvlmm.recipes.reinforcing import GRPO
from jvlmm.recipes.sources import VisionOptions
from jvlmm.rollout.engine import RolloutOptions
from jvlmm.rollout.sampling import SamplingOptions
from jvlmm.sharding.mesh import MeshOptions
from jvlmm.training.experience import GroupOptions
from jvlmm.training.lora import LoraOptions
from jvlmm.training.optimizer import OptimizerOptions
from jvlmm.training.policy import UpdateOptions
from jvlmm.video.budget import PixelOptions


def recipe():
    lora, freeze = None, ("vision", "merger")
    grpo = GRPO(
        model="tiny",
        prompts=16,
        length_buckets=(512,),
        group=GroupOptions(size=4),
        objective=PROFILES["grpo"],
        sampling=SamplingOptions(max_tokens=128, temperature=1.0),
        rollout=RolloutOptions(rows=16, slots=4, mesh=MeshOptions(data=-1, tensor=2)),
        update=UpdateOptions(rows=16),
        vision=VisionOptions(
            pixels=PixelOptions(video_min_pixels=784, video_max_pixels=112 * 112), patch_buckets=(16 * 1024,)
        ),
        optimizer=OptimizerOptions(freeze=freeze),
        lora=lora,
        mesh=MeshOptions(data=1, fsdp=-1),
        remat="full",
    )
    return Recipe(name="plan", workdir="runs/plan", stages=(grpo,))
"""
CONFIGS = Path(__file__).parents[2] / "configs"
ALL = ["grpo.tower", "grpo.prefill", "grpo.decode", "grpo.log_probs", "grpo.update"]
PARAMETERS = sum(leaf.size for leaf in jax.tree.leaves(abstract_params(PRESETS["tiny"])[0]))
DECODER = sum(leaf.size for leaf in jax.tree.leaves(abstract_params(PRESETS["tiny"])[0]["decoder"]))


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.py"
    path.write_text(RECIPE)
    return path


TEACHING = """        teaching=TeachingOptions(hindsight=HindsightOptions(max_tokens=128)),
"""


@needs_compiler
def test_a_teacher_lies_beside_every_program_and_has_one_of_its_own(recipe):
    plain = {program["name"]: program for program in plan_recipe(recipe, "h100:8")["programs"]}
    text = recipe.read_text().replace("        lora=lora,\n", TEACHING + "        lora=lora,\n")
    imports = "from jvlmm.training.{} import {}\n"
    imports = imports.format("hindsight_writing", "HindsightOptions") + imports.format("teaching", "TeachingOptions")
    recipe.write_text(imports + text)
    counted = {program["name"]: program for program in plan_recipe(recipe, "h100:8")["programs"]}
    assert list(counted) == [*ALL[:-1], "grpo.teacher", "grpo.update"]
    for name, program in plain.items():
        more = counted[name]["resident_gib"] - program["resident_gib"]
        assert more == pytest.approx(4 * DECODER / 8 / 2**30, rel=0.1, abs=2e-3), name
    taught = recipe.read_text()
    recipe.write_text(taught.replace("TeachingOptions(hind", 'TeachingOptions(model="small", decay=None, hind'))
    other = {program["name"]: program for program in plan_recipe(recipe, "h100:8")["programs"]}
    assert other["grpo.teacher"]["model_flops"] > 10 * counted["grpo.teacher"]["model_flops"]
    assert other["grpo.teacher"]["arguments_gib"] > 2 * counted["grpo.teacher"]["arguments_gib"]
    recipe.write_text(taught)
    compiled = {program["name"]: program for program in plan_recipe(recipe, "v6e:2x4")["programs"]}
    assert compiled["grpo.teacher"]["fits"] and compiled["grpo.update"]["fits"]


@needs_compiler
@pytest.mark.parametrize("topology", ["v5p:2x2x2", "v6e:2x4"])
def test_all_programs_of_a_step_compile_and_fit(recipe, topology):
    plan = plan_recipe(recipe, topology)
    programs = {program["name"]: program for program in plan["programs"]}
    assert list(programs) == ALL and all(program["fits"] for program in programs.values())
    assert all(program["devices"] == 8 for program in programs.values())
    assert programs["grpo.update"]["collectives_gib"].keys() >= {"all-gather"}
    assert programs["grpo.decode"]["roofline_s"] > 0 and programs["grpo.decode"]["roofline_by"] == "memory"


@needs_compiler
@pytest.mark.parametrize(
    ("overrides", "names"),
    [
        (("grpo.objective.beta=0", "grpo.objective.kl=none", "grpo.objective.kl_place=none"), ALL[:3] + ALL[4:]),
        (("grpo.optimizer.freeze=", "grpo.update.epochs=2"), ALL),
        (("grpo.rollout.mesh=none", "grpo.mesh.fsdp=4", "grpo.mesh.tensor=2"), ALL),
    ],
    ids=["no reference", "the tower too", "one mesh"],
)
def test_variants_compile(recipe, overrides, names):
    plan = plan_recipe(recipe, "v5p:2x2x2", overrides)
    assert [program["name"] for program in plan["programs"]] == names
    assert all(program["fits"] for program in plan["programs"])


@needs_compiler
def test_adapters_compile(recipe):
    lora = 'lora, freeze = LoraOptions(rank=4, targets=("decoder/layers_*/self_attn/q_proj",)), ()'
    recipe.write_text(RECIPE.replace('lora, freeze = None, ("vision", "merger")', lora))
    programs = plan_recipe(recipe, "v6e:2x4")["programs"]
    assert [program["name"] for program in programs] == ALL and all(program["fits"] for program in programs)


def test_what_lies_beside_a_program_counts(recipe):
    """Of eight devices each keeps its part of the weights in training, two moments of the decoder, and a reference."""
    tower, prefill, decode, log_probs, update = programs_of(load_recipe(recipe), 8, "gpu")
    reference, moments = 4 * PARAMETERS / 8, 8 * DECODER / 8
    assert update.resident == pytest.approx(reference, rel=0.02)
    assert tower.resident == prefill.resident == decode.resident
    assert decode.resident == pytest.approx(2 * reference + moments, rel=0.02)
    assert log_probs.resident == pytest.approx(reference + moments, rel=0.02)
    sampler = 2 * PARAMETERS / 2  # bfloat16, two devices share a copy
    assert decode.estimate().parameters == pytest.approx(sampler, rel=0.2)  # what heads do not divide is whole
    assert update.estimate().parameters == pytest.approx(reference, rel=0.02)


def test_flops_of_a_shared_prompt_are_counted_once(recipe):
    *_, decode, log_probs, update = programs_of(load_recipe(recipe), 8, "gpu")
    assert update.model_flops == 3 * log_probs.model_flops
    longer = apply_overrides(load_recipe(recipe), ("grpo.group.size=8", "grpo.rollout.slots=8"))
    *_, twice, more, _ = programs_of(longer, 8, "gpu")
    assert twice.model_flops == 2 * decode.model_flops
    assert 1.3 < more.model_flops / log_probs.model_flops < 1.7  # 512 + 8 · 128 places after 512 + 4 · 128


def test_a_support_of_the_students_tokens_is_a_pass_of_its_own(recipe):
    """And truncated rollouts that are not learnt are marked in the update's batch."""
    text = recipe.read_text().replace('PROFILES["grpo"]', 'PROFILES["dapo"]')
    text = text.replace("        lora=lora,\n", '        lora=lora,\n        teaching=TEACHING_PROFILES["sdpo"],\n')
    recipe.write_text("from jvlmm.training.teaching import TEACHING_PROFILES\n" + text)
    plan = plan_recipe(recipe, "h100:8", ("grpo.group.skip_truncated=true", "grpo.teaching.hindsight.max_tokens=128"))
    names = [program["name"] for program in plan["programs"]]
    assert names == ["grpo.tower", "grpo.prefill", "grpo.decode", "grpo.support", "grpo.teacher", "grpo.update"]


def test_a_gpu_plan_counts_all_programs(recipe):
    plan = plan_recipe(recipe, "h100:8")
    assert [program["name"] for program in plan["programs"]] == ALL
    assert all(0 < program["peak_gib"] < program["capacity_gib"] for program in plan["programs"])


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (("grpo.update.rows=12",), r"grpo.vision.patch_buckets=.* are patches of grpo.update.rows=12"),
        (("grpo.update.rows=4", "grpo.prompts=4"), "update.rows=4 do not divide over the 8 devices"),
        (("grpo.mesh.fsdp=4", "grpo.mesh.context=2"), "grpo.mesh.context splits rows of one sequence"),
        (("grpo.rollout.rows=2",), "grpo.rollout.rows=2 do not divide over the 4 groups of devices"),
        (("grpo.mesh.fsdp=3",), r"grpo\.mesh\.data=1, grpo\.mesh\.fsdp=3.*does not fit 8 device"),
        (("grpo.rollout.mesh.tensor=3",), r"grpo\.rollout\.mesh\.data=-1.*grpo\.rollout\.mesh\.tensor=3"),
    ],
)
def test_meshes_that_do_not_suit_are_refused(recipe, overrides, told):
    with pytest.raises(ConfigError, match=told):
        plan_recipe(recipe, "h100:8", overrides)


@pytest.mark.parametrize("name", ["grpo", "t_grpo", "video_rts", "visd"])
def test_shipped_recipes_are_planned_by_arithmetic(name):
    plan = plan_recipe(CONFIGS / f"{name}_qwen2_5_vl_7b.py", "h100:16" if name == "visd" else "h100:64")
    further = ["grpo.teacher" if name == "visd" else "grpo.log_probs"]
    assert [program["name"] for program in plan["programs"]] == [*ALL[:3], *further, *ALL[4:]]
    assert all(program["fits"] for program in plan["programs"])
