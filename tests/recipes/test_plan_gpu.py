"""`jvlmm plan` by arithmetic, and in one line what does not go together."""

from pathlib import Path

import jax
import pytest

from jvlmm.cli.main import main
from jvlmm.config import apply_overrides
from jvlmm.errors import ConfigError
from jvlmm.models.presets import PRESETS
from jvlmm.models.qwen2_5_vl import abstract_params
from jvlmm.recipes.planning import plan_recipe, programs_of
from jvlmm.recipes.recipe import load_recipe
from jvlmm.sharding import topologies

RECIPE = Path(__file__).parent / "plan_recipe.py"


def test_arguments_follow_from_the_shardings():
    update, prefill, decode = programs_of(load_recipe(RECIPE), 8, "gpu")
    numbers = sum(leaf.size for leaf in jax.tree.leaves(abstract_params(PRESETS["tiny"])[0]))
    estimate = update.estimate()
    assert estimate.parameters == pytest.approx(4 * numbers / 8, rel=0.02)  # biases of heads are whole
    assert estimate.optimizer == pytest.approx(2 * estimate.parameters, rel=0.001)
    assert estimate.gradients == estimate.parameters
    assert estimate.collectives.keys() == {"all-gather", "reduce-scatter"}
    assert prefill.estimate().parameters == decode.estimate().parameters == 2 * numbers
    assert (update.devices, prefill.devices, decode.devices) == (8, 1, 1)
    cache = 5 * 2 * 8 * 2 * (128 + 16) * 40 * 2  # layers, keys and values, rows, heads, slots, width, bytes
    assert decode.estimate().activations == cache
    assert cache < prefill.estimate().results < 1.1 * cache
    assert decode.estimate().inputs >= cache


def test_remat_and_batch_change_what_is_kept():
    def estimate(*overrides):
        return next(programs_of(apply_overrides(load_recipe(RECIPE), overrides), 8, "gpu")).estimate()

    def kept(*overrides):
        return estimate(*overrides).activations

    none, minimal, dots, full, offload = (
        kept(f"sft.remat={remat}") for remat in ("none", "minimal", "dots", "full", "offload")
    )
    assert none > minimal > dots > full > offload
    assert estimate("sft.remat=offload").host == full - offload
    frozen = "sft.optimizer.freeze=vision,merger"
    assert kept("sft.remat=minimal", "sft.attention=cudnn", frozen) == kept("sft.remat=dots", frozen)
    assert kept("sft.remat=none", "sft.batch_size=16", "sft.vision.patch_buckets=4096") == 2 * none


def test_a_gpu_plan_says_that_nothing_was_compiled(capsys):
    assert main(["plan", str(RECIPE), "--topology", "h100:8"]) == 0
    told = capsys.readouterr().out
    assert "h100:8: 8 devices; figures of one; by arithmetic: nothing was compiled" in told
    assert all(name in told for name in ("sft.train_step", "evaluate.prefill", "evaluate.decode"))


def test_what_does_not_fit_ends_with_1(capsys):
    assert main(["plan", str(RECIPE), "--topology", "l4:1", "sft.model=72b"]) == 1
    told = capsys.readouterr().out
    assert "sft.train_step: it runs on one device: lower batch_size" in told


def test_weights_are_read_once_a_token():
    plan = plan_recipe(RECIPE, "h100:8")["programs"][2]
    assert plan["name"] == "evaluate.decode" and plan["roofline_by"] == "memory"
    short = plan_recipe(RECIPE, "h100:8", ("evaluate.sampling.max_tokens=8",))["programs"][2]
    assert short["model_flops"] < 0.5 * plan["model_flops"]


def test_sampling_that_a_checkpoint_will_say_is_planned_with_what_it_may_ask_for():
    """Options that are refused in greedy decoding are none here; what penalties look at is read at every token."""
    plain, asked = (
        plan_recipe(RECIPE, "h100:8", overrides)["programs"][2]["seconds_per_sample"]
        for overrides in ((), ("evaluate.sampling.from_checkpoint=true", "evaluate.sampling.top_k=20"))
    )
    assert asked > plain


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (
            ("sft.mesh.tensor=8", "sft.mesh.fsdp=1"),
            "axis 'kv_heads' of size 2 does not divide over 8 devices.*rules.kv_heads=",
        ),
        (("sft.batch_size=12",), "batch_size = 12 does not divide over the 8 devices.*use a multiple of 8"),
        (("sft.mesh.fsdp=3",), r"sft\.mesh\.data=1, sft\.mesh\.fsdp=3.*does not fit 8 device"),
        (
            ("sft.mesh.context=8", "sft.mesh.fsdp=1", "sft.length_buckets=100"),
            "rows of 100 tokens do not divide over the 8 devices.*use multiples of 8",
        ),
        (("evaluate.vision.patch_buckets=",), "without buckets the largest batch is not known"),
        (("evaluate.length_buckets=",), "without buckets the largest batch is not known"),
        (("sft.model=stage:new",), "the shape of model 'stage:new' is not known.*sft.model=Qwen2.5-VL-3B-Instruct"),
    ],
)
def test_a_recipe_that_does_not_suit_the_gpus_is_refused(overrides, told):
    with pytest.raises(ConfigError, match=told):
        plan_recipe(RECIPE, "h100:8", overrides)


@pytest.mark.parametrize(
    ("topology", "told"),
    [
        ("h100", "is unknown; write v5e:4x4"),
        ("h300:8", "with one of v4, v5e"),
        ("h100:0", "has no devices; write positive numbers"),
        ("v5e:0x4", "has no devices"),
        ("h100:2x4", "GPUs have no shape; write their number, h100:8"),
    ],
)
def test_an_impossible_topology_is_refused_in_one_line(topology, told, capsys):
    assert main(["plan", str(RECIPE), "--topology", topology]) == 1
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1


def test_a_missing_compiler_is_told_with_its_remedy(monkeypatch):
    def missing(*_, **__):
        raise RuntimeError("Unable to initialize backend 'tpu'\nand more")

    monkeypatch.setattr("jax.experimental.topologies.get_topology_desc", missing)
    monkeypatch.setattr(topologies.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"the TPU compiler cannot be loaded.*pip install 'jvlmm\[tpu\]'"):
        plan_recipe(RECIPE, "v5e:2x2")
