"""Two processes train as one: the same losses, one end for both, and a run that goes on in another number of them."""

import json
import signal

import jax
import pytest
from jax.experimental.compilation_cache.compilation_cache import reset_cache
from recipe_processes import start_processes, write_model, write_rows

from jvlmm.recipes.runner import run_recipe

STEPS, KILLED_AFTER, CHECKPOINT_EVERY = 23, 20, 8
CONFIG = """
from jvlmm.recipes.recipe import Recipe
from jvlmm.recipes.sources import Source, VisionOptions
from jvlmm.recipes.training import SFT
from jvlmm.sharding.mesh import MeshOptions
from jvlmm.training.optimizer import OptimizerOptions
from jvlmm.video.budget import PixelOptions

ROOT = {root!r}


def recipe():
    train = SFT(
        model=f"{{ROOT}}/model",
        sources=(Source(f"{{ROOT}}/rows.jsonl"),),
        style="direct",
        steps={steps},
        batch_size=8,
        length_buckets=(96,),
        vision=VisionOptions(pixels=PixelOptions(784, 3136, 784, 3136), workers=0, patch_buckets=(128,)),
        optimizer=OptimizerOptions(learning_rate=1e-3),
        mesh=MeshOptions(data=4, fsdp=2),
        log_every=1,
        checkpoint_every={checkpoint_every},
        export_dtype="float32",
    )
    return Recipe(name="job", workdir="unused", stages=(train,))
"""
# The second process kills itself at a step.
PROGRAM = """
import os, signal, sys
from jvlmm.training.step import TrainStep

calls, take_step = 0, TrainStep.__call__


def counted(self, *arguments):
    global calls
    calls += 1
    if calls == {kill_at} and os.environ["JVLMM_PROCESS_ID"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    return take_step(self, *arguments)


TrainStep.__call__ = counted
from jvlmm.cli.main import main

sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """The configuration file of a stage that trains one layer on twenty rows."""
    if jax.device_count() < 8:
        pytest.skip(f"needs 8 (simulated) devices, found {jax.device_count()}")
    folder = tmp_path_factory.mktemp("job")
    write_model(folder / "model")
    write_rows(folder)
    path = folder / "config.py"
    path.write_text(CONFIG.format(root=str(folder), steps=STEPS, checkpoint_every=CHECKPOINT_EVERY))
    return path


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory):
    """What one process compiles is not compiled again when it resumes."""
    changed = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.3,
    }
    before = {name: getattr(jax.config, name) for name in changed}
    for settings in (changed, before):
        for name, value in settings.items():
            jax.config.update(name, value)
        reset_cache()
        if settings is changed:
            yield


@pytest.fixture(scope="module")
def alone(config, tmp_path_factory):
    """The run directory of one process with eight devices."""
    workdir = tmp_path_factory.mktemp("alone")
    run_recipe(config, workdir)
    return workdir


LOST_LINE = "jvlmm: error: process 1 of 2 ended the job: it is gone without a word"


def losses(workdir):
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return {record["step"]: record["loss"] for record in map(json.loads, lines)}


def assert_equal(actual, expected):
    for step, loss in expected.items():
        assert abs(actual[step] - loss) <= 1e-5 * abs(loss), f"step {step}: {actual[step]} instead of {loss}"


def test_losses_of_one_process_a_kill_and_a_resume_in_another_number(config, alone, tmp_path):
    compiled = {"JAX_COMPILATION_CACHE_DIR": str(config.parent / "compiled")}
    program = PROGRAM.format(kill_at=KILLED_AFTER + 2)  # the metrics of a step are written one step later
    job = start_processes(program, compiled, "run", str(config), "--workdir", str(tmp_path))
    outputs = [process.communicate(timeout=280) for process in job]
    assert [process.returncode for process in job] == [1, -signal.SIGKILL], outputs
    assert outputs[0][1].splitlines()[-1].startswith(LOST_LINE)
    expected = losses(alone)
    assert_equal(losses(tmp_path), {step: expected[step] for step in range(1, KILLED_AFTER + 1)})

    result = run_recipe(config, tmp_path)["stages"]["sft"]
    assert (result["examples"], result["rejected"]) == (20, 1)
    assert len((tmp_path / "rejected.jsonl").read_text().splitlines()) == 1
    assert set(losses(tmp_path)) == set(expected) == set(range(1, STEPS + 1))
    assert_equal(losses(tmp_path), expected)


LOST = """
import os, signal
from jax.errors import JaxRuntimeError
from jvlmm.sharding.hosts import joined

with joined(os.environ):
    if os.environ["JVLMM_PROCESS_ID"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    raise JaxRuntimeError("UNKNOWN: Gloo AllGather failed: Connection closed by peer")
"""


def test_a_collective_that_breaks_tells_which_process_is_lost():
    job = start_processes(LOST, {})
    outputs = [process.communicate(timeout=120) for process in job]
    assert [process.returncode for process in job] == [1, -signal.SIGKILL], outputs
    assert outputs[0][1].splitlines()[-1].startswith(LOST_LINE)


TERMINATED = """
import os, signal, sys, time
from jvlmm.sharding.hosts import joined
from jvlmm.training.preemption import Preempted, Preemption

with joined(os.environ), Preemption() as preemption:
    for step in range(1000):
        if step == 3 and os.environ["JVLMM_PROCESS_ID"] == "1":
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
        if preemption.reached():
            print(step)
            raise Preempted
"""


def test_sigterm_in_one_process_ends_both_after_the_same_step():
    job = start_processes(TERMINATED, {})
    outputs = [process.communicate(timeout=120) for process in job]
    assert [process.returncode for process in job] == [143, 143], outputs
    steps = {out.splitlines()[-1] for out, _ in outputs}
    assert steps == {"4"}, "one step after the signal"
