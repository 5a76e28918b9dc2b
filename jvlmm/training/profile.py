"""A trace of a few updates, for xprof and TensorBoard."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from jvlmm.errors import ConfigError
from jvlmm.training.state import TrainState
from jvlmm.training.step import TrainStep

STEP = "train_step"  # the name of an update in the trace


@dataclass(frozen=True)
class ProfileOptions:
    """Which updates of a stage are traced."""

    start: int = 10  # the first; those before it compile the programs
    steps: int = 5

    def __post_init__(self):
        for name in ("start", "steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"profile.{name} = {getattr(self, name)} must be at least 1")

    @property
    def last(self) -> int:
        return self.start + self.steps - 1


class Profiler:
    """Runs updates, and traces those of its options into `DIRECTORY/process_N`; a context manager.

    A run that resumes after `start` traces nothing, nor does one whose trace is there already. The device's work is
    traced and what the host hands to it; Python's calls are not, which would slow the host down.
    """

    def __init__(self, options: ProfileOptions, directory: Path):
        self._options = options
        self._directory = directory / f"process_{jax.process_index()}"
        self._running = False

    def run(self, step: TrainStep, number: int, state: TrainState, batches: list[Any]) -> tuple[TrainState, Any]:
        """Update `number` of the stage, waited for where it is the last one traced, or the last before those."""
        if number == self._options.start and not any(self._directory.rglob("*.xplane.pb")):
            jax.block_until_ready(state)
            self._start()
        if not self._running:
            return step(state, batches)
        with jax.profiler.StepTraceAnnotation(STEP, step_num=number):
            result = step(state, batches)
        if number == self._options.last:
            jax.block_until_ready(result)
            self._stop()
        return result

    def _start(self) -> None:
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0
        jax.profiler.start_trace(self._directory, profiler_options=options)
        self._running = True

    def _stop(self) -> None:
        self._running = False
        jax.profiler.stop_trace()

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(self, *_) -> None:
        """Write what was traced of a run that ends early."""
        if self._running:
            self._stop()
