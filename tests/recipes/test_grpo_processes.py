"""Two processes take the policy steps of one: the same rollouts, the same losses, one scores for both."""

import json

import jax
import numpy as np
import pytest
from recipe_processes import start_processes, write_model, write_rows

from jvlmm.models.huggingface import load_config, load_params
from jvlmm.recipes.runner import run_recipe

CONFIG = """
from jvlmm.objectives.profiles import PROFILES
from jvlmm.objectives.visd import VISDConfig
from jvlmm.recipes.recipe import Recipe
from jvlmm.recipes.reinforcing import GRPO
from jvlmm.recipes.sources import Source, VisionOptions
from jvlmm.rewards.terms import RewardOptions, RewardTerm
from jvlmm.rollout.engine import RolloutOptions
from jvlmm.rollout.sampling import SamplingOptions
from jvlmm.sharding.mesh import MeshOptions
from jvlmm.training.experience import GroupOptions
from jvlmm.training.optimizer import OptimizerOptions
from jvlmm.training.policy import UpdateOptions
from jvlmm.training.teaching import TeachingOptions
from jvlmm.video.budget import PixelOptions

ROOT = {root!r}


def recipe():
    rows = Source(f"{{ROOT}}/rows.jsonl")
    grpo = GRPO(
        model=f"{{ROOT}}/model",
        sources=(rows,),
        style="direct",
        steps=3,
        prompts=8,
        length_buckets=(96,),
        group=GroupOptions(size=3, resample_rounds=1),
        objective=PROFILES["grpo"],
        rewards=RewardOptions(None, (RewardTerm("mine", f"{{ROOT}}/reward.py:chance"),)),
        sampling=SamplingOptions(max_tokens=6, temperature=1.0),
        rollout=RolloutOptions(rows=4, slots=2, mesh=MeshOptions(data=4, tensor=2)),
        update=UpdateOptions(rows=8),
        teaching=TeachingOptions(VISDConfig(anneal_steps=2)),
        vision=VisionOptions(pixels=PixelOptions(784, 3136, 784, 3136), workers=0, patch_buckets=(8 * 64,)),
        optimizer=OptimizerOptions(learning_rate=1e-3),
        mesh=MeshOptions(data=1, fsdp=4, tensor=2),
        evaluation=(rows,),
        evaluate_every=2,
        export_dtype="float32",
    )
    return Recipe(name="job", workdir="unused", stages=(grpo,))
"""
# A reward that fails, and so counts as 0, in every process but the first.
REWARD = """
import os


def chance(completion, example):
    assert os.environ.get("JVLMM_PROCESS_ID", "0") == "0"
    return (len(completion) * 37 + len(example.id)) % 11 / 10
"""
PROGRAM = "import sys; from jvlmm.cli.main import main; sys.exit(main(sys.argv[1:]))"


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """The configuration file of a stage that trains one layer on twenty rows."""
    if jax.device_count() < 8:
        pytest.skip(f"needs 8 (simulated) devices, found {jax.device_count()}")
    folder = tmp_path_factory.mktemp("job")
    write_model(folder / "model")
    write_rows(folder)
    (folder / "reward.py").write_text(REWARD)
    path = folder / "config.py"
    path.write_text(CONFIG.format(root=str(folder)))
    return path


def figures(workdir):
    names = ("loss", "grad_norm", "kl", "reward", "entropy", "sampler_gap", "eval/overall", "visd/gap", "judge/failed")
    records = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [{name: record[name] for name in names if name in record} for record in records]


def texts(workdir):
    lines = (workdir / "predictions/grpo.rollouts.jsonl").read_text().splitlines()
    return [(line["step"], line["id"], line["sample"], line["text"]) for line in map(json.loads, lines)]


def test_two_processes_take_the_steps_of_one(config, tmp_path):
    alone, both = tmp_path / "alone", tmp_path / "both"
    run_recipe(config, alone)
    job = start_processes(PROGRAM, {}, "run", str(config), "--workdir", str(both), "--debug")
    outputs = [process.communicate(timeout=500) for process in job]
    assert [process.returncode for process in job] == [0, 0], outputs
    assert texts(both) == texts(alone)
    for ours, theirs in zip(figures(both), figures(alone), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-6)
    assert figures(both)[0]["sampler_gap"] < 1e-4
    assert len((both / "rejected.jsonl").read_text().splitlines()) == 1
    assert (both / "models/grpo/model.safetensors").is_file() and (both / "models/grpo-best.json").is_file()


def test_a_process_that_cannot_read_what_the_others_read_ends_all(config, tmp_path):
    """Where it looks, the first image of all is broken."""
    program = """
import os, sys
from jvlmm.data import prompt_stream
from jvlmm.errors import DataError

check = prompt_stream.check_fits


def refuse(sequence, options):
    check(sequence, options)
    if os.environ["JVLMM_PROCESS_ID"] == "1" and sequence.id in ("r1", "r2", "r3"):
        raise DataError("gone")


prompt_stream.check_fits = refuse
from jvlmm.cli.main import main

sys.exit(main(sys.argv[1:]))
"""
    job = start_processes(program, {}, "run", str(config), "--workdir", str(tmp_path))
    outputs = [process.communicate(timeout=500) for process in job]
    assert [process.returncode for process in job] == [1, 1], outputs
    assert any("let all processes see the same files" in err for _, err in outputs), outputs


def test_adapters_are_exported_alone_and_merged(config, tmp_path):
    """What they adapt is as it was, and a run that is done again from its checkpoint ends alike."""
    lora = 'LoraOptions(rank=2, alpha=4, targets=("decoder/layers_*/mlp/down_proj",))'
    text = config.read_text().replace(
        "        mesh=MeshOptions(data=1", f"        lora={lora},\n        mesh=MeshOptions(data=1"
    )
    path = tmp_path / "lora.py"
    path.write_text("from jvlmm.training.lora import LoraOptions\n" + text)
    result = run_recipe(path, tmp_path / "run")["stages"]["grpo"]
    assert (tmp_path / "run" / result["adapter"] / "adapter_config.json").is_file()
    merged, base = (
        load_params(folder, load_config(folder))
        for folder in (tmp_path / "run" / result["path"], config.parent / "model")
    )
    moved = {
        jax.tree_util.keystr(where)
        for (where, new), old in zip(jax.tree_util.tree_leaves_with_path(merged), jax.tree.leaves(base), strict=True)
        if (np.asarray(new) != np.asarray(old)).any()
    }
    assert moved == {"['decoder']['layers_0']['mlp']['down_proj']['kernel']"}
    first, *_, last = (line for line in figures(tmp_path / "run") if "kl" in line)
    assert abs(first["kl"]) < 1e-9 < last["kl"], "the reference is the model without them"
