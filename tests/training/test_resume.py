"""A killed, preempted or full run continues as if nothing had happened."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import toy_training as toy

import jvlmm
from jvlmm.errors import CheckpointError, ConfigError, DataError
from jvlmm.termination import Terminated
from jvlmm.training.checkpoints import CheckpointOptions, Checkpoints
from jvlmm.training.optimizer import OptimizerOptions, make_optimizer
from jvlmm.training.preemption import Preempted
from jvlmm.training.state import create_state


def records(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def losses(directory):
    return [(record["step"], record["loss"]) for record in records(directory) if "loss" in record]


def assert_identical(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    directory = tmp_path_factory.mktemp("uninterrupted")
    state = toy.train(directory)
    return jax.device_get(state), losses(directory)


def make_state(width=toy.WIDTH, **options):
    optimizer = make_optimizer(OptimizerOptions(**options), toy.TOTAL, toy.MODULES)
    return create_state(toy.init_params(width=width), optimizer)


def test_kill_at_three_moments_changes_no_bit(tmp_path, uninterrupted):
    reached = {"between-checkpoints": 4, "while-saving": 4, "while-logging": 8}
    environment = {**os.environ, "PYTHONPATH": str(Path(jvlmm.__file__).parents[1])}
    for moment, step in reached.items():
        command = [sys.executable, str(Path(toy.__file__)), str(tmp_path), moment]
        victim = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert victim.returncode == -signal.SIGKILL, victim.stderr
        assert max(int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()) == step
    state = toy.train(tmp_path)
    expected_state, expected_losses = uninterrupted
    assert losses(tmp_path) == expected_losses, "one line per step, every loss to the last bit"
    assert_identical(jax.device_get(state), expected_state)
    assert not [p for p in (tmp_path / "checkpoints").iterdir() if "tmp" in p.name]


def test_sigterm_saves_says_so_and_exits_143(tmp_path, uninterrupted, capsys):
    def terminate(number):
        if number == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Preempted) as stopped:
        toy.train(tmp_path, toy.ToyLoader(on_batch=terminate))
    assert stopped.value.code == 143
    assert "SIGTERM after step 6, which is saved; the same command goes on" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.latest_step() == 6
    state = toy.train(tmp_path)
    assert_identical(jax.device_get(state), uninterrupted[0])
    assert losses(tmp_path) == uninterrupted[1]


def test_finished_stage_is_not_trained_again(tmp_path, uninterrupted):
    toy.train(tmp_path)
    before = (tmp_path / "metrics.jsonl").read_text()
    state = toy.train(tmp_path, toy.ToyLoader(batches=0))
    assert_identical(jax.device_get(state), uninterrupted[0])
    assert (tmp_path / "metrics.jsonl").read_text() == before


def wait_until_still(folder):
    """Until what a failed save left running has written its last file: none came or went for two seconds."""
    found, since = None, time.monotonic()
    while time.monotonic() - since < 2:
        now = {(str(path), path.stat().st_size) for path in folder.rglob("*") if path.exists()}
        if now != found:
            found, since = now, time.monotonic()
        time.sleep(0.1)


def test_full_disk_leaves_earlier_checkpoints_intact(tmp_path):
    state = make_state()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, {"position": 1})
        unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2048, unlimited[1]))
        try:
            with pytest.raises(CheckpointError, match=r"cannot save step 5 in .*free space") as refused:
                checkpoints.save(state.replace(step=state.step + 5), {"position": 2})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
        assert "\n" not in str(refused.value)
    wait_until_still(tmp_path)  # people run the command again, whose process has no such writers
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() == 0
        restored, loader_state = checkpoints.restore(state)
        assert loader_state == {"position": 1}
        assert_identical(restored, state)
        checkpoints.save(state.replace(step=state.step + 5), {"position": 2})
        assert checkpoints.latest_step() == 5


FULL = """
import resource, sys
from jvlmm.training.checkpoints import silence_failed_writes
from toy_training import *

silence_failed_writes()
state = create_state(init_params(width=256), make_optimizer(OptimizerOptions(), TOTAL, MODULES))
checkpoints = Checkpoints(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
try:
    checkpoints.save(state.replace(step=state.step + 1), {})
    checkpoints.close()
except Exception as error:
    print(error, file=sys.stderr)
"""


def test_a_full_disk_is_told_in_one_line_by_a_command(tmp_path):
    """Every file of the checkpoint fails in a task of its own, and each would leave a stack trace."""
    folders = f"{Path(jvlmm.__file__).parents[1]}{os.pathsep}{Path(toy.__file__).parent}"
    found = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": folders},
        capture_output=True,
        text=True,
        timeout=300,
    )
    (line,) = found.stderr.splitlines()
    assert line.startswith("cannot save") and "free space there" in line


def test_only_the_newest_are_kept(tmp_path):
    state = make_state()
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in range(4):
            checkpoints.save(state.replace(step=state.step + step), step)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "3"]


def test_asynchronous_saving_survives_donation(tmp_path, uninterrupted):
    class Asynchronous(Checkpoints):
        def __init__(self, directory):
            super().__init__(directory, keep=100, asynchronous=True)

    toy.train(tmp_path, checkpoints_class=Asynchronous, checkpoint_every=1)
    like = make_state(weight_decay=0.1)
    with Checkpoints(tmp_path / "checkpoints", keep=100) as checkpoints:
        assert_identical(checkpoints.restore(like)[0], uninterrupted[0])
        for step in (3, 7):
            assert int(checkpoints.restore(like, step)[0].step) == step


def test_checkpoint_of_another_shape_is_refused(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make_state(), None)
        with pytest.raises(CheckpointError, match="cannot restore step 0 from .*same model"):
            checkpoints.restore(make_state(width=16))
        with pytest.raises(CheckpointError, match="cannot restore step 0 from"):
            checkpoints.restore(make_state(freeze=("vision",)))


def test_missing_checkpoint_and_unwritable_directory(tmp_path):
    with Checkpoints(tmp_path / "empty") as checkpoints, pytest.raises(CheckpointError, match="no complete checkpoint"):
        checkpoints.restore(make_state())
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot open .*choose a writable directory"):
        Checkpoints(tmp_path / "file" / "checkpoints")


def test_checkpoint_restores_onto_another_mesh(tmp_path):
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    if jax.device_count() < 8:
        pytest.skip(f"needs 8 (simulated) devices, found {jax.device_count()}")
    state = make_state()
    devices = np.array(jax.devices())

    def shardings(mesh, axis):
        return jax.tree.map(lambda x: NamedSharding(mesh, PartitionSpec(*[axis][: x.ndim])), state)

    four = jax.device_put(state, shardings(Mesh(devices[:4], ("fsdp",)), "fsdp"))
    eight = shardings(Mesh(devices.reshape(2, 4), ("data", "fsdp")), "data")
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(four, {})
        like = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, eight)
        restored, _ = checkpoints.restore(like)
    assert_identical(restored, state)
    jax.tree.map(lambda x, s: np.testing.assert_(x.sharding.is_equivalent_to(s, x.ndim)), restored, eight)


def test_data_that_ends_early_is_named(tmp_path):
    with pytest.raises(DataError, match="ended before step 6 of 14; raise the number of epochs"):
        toy.train(tmp_path, toy.ToyLoader(batches=5))


def damage(kind, checkpoints):
    newest = checkpoints / "8"
    largest = max((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    metadata = newest / "loader/metadata"
    match kind:
        case "a data file deleted":
            largest.unlink()
        case "a data file cut":
            os.truncate(largest, largest.stat().st_size // 2)
        case "one bit of the largest file flipped":
            content = bytearray(largest.read_bytes())
            content[len(content) // 2] ^= 1
            largest.write_bytes(content)
        case "the loader's metadata cut":
            os.truncate(metadata, metadata.stat().st_size // 2)
        case "the loader's position changed":
            metadata.write_text(metadata.read_text().replace('"number": 8', '"number": 7'))
        case "an empty directory":
            (checkpoints / "12").mkdir()


@pytest.mark.parametrize(
    "kind",
    [
        "a data file deleted",
        "a data file cut",
        "one bit of the largest file flipped",
        "the loader's metadata cut",
        "the loader's position changed",
        "an empty directory",
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path, kind, uninterrupted, half_done, capsys):
    shutil.copytree(half_done, tmp_path, dirs_exist_ok=True)
    damage(kind, tmp_path / "checkpoints")
    state = toy.train(tmp_path)
    number, used = (12, 8) if kind == "an empty directory" else (8, 4)
    (line,) = capsys.readouterr().err.splitlines()
    assert f"checkpoints/{number} is damaged (" in line and line.endswith(f"that of step {used} is used instead")
    assert_identical(jax.device_get(state), uninterrupted[0])
    assert losses(tmp_path) == uninterrupted[1]
    assert (tmp_path / f"checkpoints/{number}.damaged").is_dir(), "put aside"
    assert toy.train(tmp_path) is not None and capsys.readouterr().err == ""


def test_too_little_memory_is_no_damage(tmp_path, half_done, monkeypatch):
    shutil.copytree(half_done, tmp_path, dirs_exist_ok=True)

    def exhausted(*_, **__):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    monkeypatch.setattr(ocp.CheckpointManager, "restore", exhausted)
    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"):
        toy.train(tmp_path)
    assert {"4", "8"} <= set(os.listdir(tmp_path / "checkpoints"))


@pytest.fixture(scope="module")
def half_done(tmp_path_factory):
    """A run that ended at step 8, with checkpoints of steps 4 and 8."""
    directory = tmp_path_factory.mktemp("half")
    with pytest.raises(DataError):
        toy.train(directory, toy.ToyLoader(batches=8))
    return directory


def test_the_only_checkpoint_where_damaged_is_refused_and_stays(tmp_path, half_done):
    shutil.copytree(half_done, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "checkpoints/4")
    damage("a data file cut", tmp_path / "checkpoints")
    with pytest.raises(CheckpointError, match="cannot restore step 8 from .*delete the directory to begin anew"):
        toy.train(tmp_path)
    assert (tmp_path / "checkpoints/8").is_dir()


def test_every_so_many_steps_are_kept_for_ever(tmp_path):
    state = make_state()
    with Checkpoints(tmp_path, keep=1, keep_every=2) as checkpoints:
        for step in range(6):
            checkpoints.save(state.replace(step=state.step + step), step)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "2", "4", "5"]
    for options in ({"keep": 0}, {"keep_every": 0}):
        with pytest.raises(ConfigError, match="must be at least 1"):
            CheckpointOptions(**options)


def test_sigterm_in_an_evaluation_ends_it_and_the_resumed_run_repeats_it(tmp_path, uninterrupted):
    asked = []

    def evaluate(state, interrupt=False):
        asked.append(int(state.step))
        if interrupt:
            os.kill(os.getpid(), signal.SIGTERM)
            pytest.fail("SIGTERM ends an evaluation at once")
        return {"accuracy": float(state.params["decoder"]["mlp"]["bias"].sum())}

    with pytest.raises(Preempted):
        toy.train(tmp_path, evaluate=lambda state: evaluate(state, int(state.step) == 10), evaluate_every=5)
    state = toy.train(tmp_path, evaluate=evaluate, evaluate_every=5)
    assert asked == [5, 10, 10, 14]
    assert [r["step"] for r in records(tmp_path) if "eval/accuracy" in r] == [5, 10, 14]
    assert_identical(jax.device_get(state), uninterrupted[0])


def test_sigterm_before_the_first_step_is_done_ends_the_run_at_once(tmp_path):
    def terminate(number):
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Terminated):
        toy.train(tmp_path, toy.ToyLoader(on_batch=terminate))
    assert not list((tmp_path / "checkpoints").iterdir())
