"""A small regression in place of the model: three modules, masked loss, a loader with random order and buckets.

Run as a script it is the victim of the kill tests: `python toy_training.py DIRECTORY MOMENT`.
"""

import os
import signal
import sys
import threading
import time
from contextlib import ExitStack
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jvlmm.reporting.writers import MetricsWriter
from jvlmm.training.checkpoints import Checkpoints
from jvlmm.training.loop import FitOptions, fit
from jvlmm.training.optimizer import OptimizerOptions, make_optimizer
from jvlmm.training.profile import Profiler
from jvlmm.training.state import create_state
from jvlmm.training.step import make_train_step

MODULES = ("vision", "merger", "decoder")
WIDTH = 32
TOTAL = 14


def init_params(seed=0, width=WIDTH):
    keys = jax.random.split(jax.random.key(seed), len(MODULES))
    return {
        name: {
            "mlp": {"kernel": jax.random.normal(key, (width, width)) / width**0.5, "bias": jnp.full(width, 0.1)},
            "input_norm": {"scale": jnp.ones(width)},
        }
        for name, key in zip(MODULES, keys, strict=True)
    }


def loss_fn(params, batch):
    hidden = batch["inputs"]
    for name in MODULES:
        module = params[name]
        normed = hidden * module["input_norm"]["scale"]
        hidden = hidden + jnp.tanh(normed @ module["mlp"]["kernel"] + module["mlp"]["bias"])
    losses = jnp.mean((hidden - batch["targets"]) ** 2, axis=-1)
    count = jnp.sum(batch["mask"])
    return jnp.sum(losses * batch["mask"]), count, {"tokens": count, "places": jnp.asarray(len(losses))}


def brittle_loss_fn(params, batch):
    """A finite loss whose gradient is 0 · inf where the inputs are 7 throughout."""
    total, count, extras = loss_fn(params, batch)
    distance = jnp.sum((batch["inputs"] - 7) ** 2) * jnp.sum(params["decoder"]["mlp"]["kernel"] ** 2)
    return total + 1e-3 * jnp.sqrt(distance), count, extras


class PoisonedLoader:
    """A loader whose batches of these numbers have inputs of this value."""

    def __init__(self, numbers, value=7.0):
        self._loader, self._numbers, self._value = ToyLoader(), numbers, value
        self.get_state, self.set_state = self._loader.get_state, self._loader.set_state

    def __next__(self):
        batch, ids = next(self._loader)
        if self._loader.get_state()["number"] in self._numbers:
            batch["inputs"][:] = self._value
        return batch, ids


def make_batch(rng, rows=8, width=WIDTH):
    return {
        "inputs": rng.normal(size=(rows, width)).astype(np.float32),
        "targets": rng.normal(size=(rows, width)).astype(np.float32),
        "mask": np.append(rng.integers(0, 2, rows - 1), 1).astype(np.float32),
    }


class ToyLoader:
    """Endless random batches of two sizes; its position is the state of its generator. `on_batch` sees each number."""

    def __init__(self, seed=0, rows=(8, 4), batches=None, on_batch=None):
        self._rng, self._rows, self._batches, self._on_batch = np.random.default_rng(seed), rows, batches, on_batch
        self._number = 0

    def __next__(self):
        if self._number == self._batches:
            raise StopIteration
        self._number += 1
        if self._on_batch:
            self._on_batch(self._number)
        rows = int(self._rng.choice(self._rows))
        return make_batch(self._rng, rows), [f"{self._number}/{row}" for row in range(rows)]

    def get_state(self):
        return {"number": self._number, "generator": self._rng.bit_generator.state}

    def set_state(self, state):
        self._number, self._rng.bit_generator.state = state["number"], state["generator"]


@cache
def brittle_step(learning_rate):
    """The step of `brittle_loss_fn`, compiled once for all runs of a process."""
    options = OptimizerOptions(learning_rate, warmup_steps=2, weight_decay=0.1)
    return make_train_step(brittle_loss_fn, make_optimizer(options, TOTAL, MODULES))


def train(
    directory,
    loader=None,
    checkpoints_class=Checkpoints,
    writer_class=MetricsWriter,
    evaluate=None,
    profile=None,
    loss=loss_fn,
    learning_rate=3e-3,
    **changes,
):
    """Train the toy in `directory`, as a stage does; returns the final state."""
    options = FitOptions(**{"total_steps": TOTAL, "checkpoint_every": 4, **changes})
    optimizer = make_optimizer(OptimizerOptions(learning_rate, warmup_steps=2, weight_decay=0.1), TOTAL, MODULES)
    state = create_state(init_params(), optimizer)
    step = make_train_step(loss, optimizer) if loss is loss_fn else brittle_step(learning_rate)
    directory = Path(directory)
    with ExitStack() as stack:
        writer = stack.enter_context(writer_class(directory))
        checkpoints = stack.enter_context(checkpoints_class(directory / "checkpoints"))
        profiler = stack.enter_context(Profiler(profile, directory / "profile")) if profile else None
        further = {"evaluate": evaluate, "profiler": profiler}
        return fit(state, step, loader or ToyLoader(), options, writer, checkpoints, **further)


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


class WriterKilledInALine(MetricsWriter):
    """Dies in the middle of the line of step 11."""

    def write(self, record):
        if record["step"] == 11:
            self._file.write('{"stage": "train", "st')
            self._file.flush()
            kill()
        super().write(record)


class CheckpointsKilledWhileSaving(Checkpoints):
    """Dies while the checkpoint of step 8 is being written under its temporary name."""

    def save(self, state, loader_state, evaluated=True):
        if int(state.step) == 8:
            threading.Thread(target=self._kill_when_begun, daemon=True).start()
        super().save(state, loader_state, evaluated)

    def _kill_when_begun(self):
        while not any("tmp" in path.name for path in self.directory.iterdir()):
            time.sleep(0)
        kill()


def main(directory, moment):
    if moment == "between-checkpoints":
        train(directory, ToyLoader(on_batch=lambda number: kill() if number == 7 else None))
    elif moment == "while-saving":
        train(directory, checkpoints_class=CheckpointsKilledWhileSaving)
    elif moment == "while-logging":
        train(directory, writer_class=WriterKilledInALine)


if __name__ == "__main__":
    main(*sys.argv[1:])
