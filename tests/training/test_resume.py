"""A killed, preempted or full run continues as if nothing had happened."""

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import toy_training as toy

import jvlmm
from jvlmm.errors import CheckpointError, DataError, JvlmmError
from jvlmm.training.checkpoints import Checkpoints
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


def test_sigterm_saves_and_exits_143(tmp_path, uninterrupted):
    def terminate(number):
        if number == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Preempted) as stopped:
        toy.train(tmp_path, toy.ToyLoader(on_batch=terminate))
    assert stopped.value.code == 143
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
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() == 0
        restored, loader_state = checkpoints.restore(state)
        assert loader_state == {"position": 1}
        assert_identical(restored, state)
        checkpoints.save(state.replace(step=state.step + 5), {"position": 2})
        assert checkpoints.latest_step() == 5


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


def test_loss_that_is_not_finite_stops_the_run(tmp_path):
    class Poisoned(toy.ToyLoader):
        def __next__(self):
            batch, ids = super().__next__()
            if self._number == 6:
                batch["inputs"][:] = np.nan
            return batch, ids

    with pytest.raises(JvlmmError, match="loss of step 6 of stage 'train' is nan"):
        toy.train(tmp_path, Poisoned())
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.latest_step() == 4
