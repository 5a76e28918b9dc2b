"""The training loop: feed, step, log, checkpoint, evaluate; resumes by itself."""

import sys
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import jax

from jvlmm.errors import ConfigError, DataError
from jvlmm.training.checkpoints import Checkpoints, Restored
from jvlmm.training.finite import NotFinite, SkippedSteps, check_finite
from jvlmm.training.meter import Meter
from jvlmm.training.preemption import Preempted, Preemption
from jvlmm.training.profile import Profiler
from jvlmm.training.state import TrainState
from jvlmm.training.step import TrainStep


@dataclass(frozen=True)
class FitOptions:
    """Length and rhythm of a stage, in optimiser updates."""

    total_steps: int
    stage: str = "train"
    accumulation: int = 1  # batches of the loader per update
    log_every: int = 1
    checkpoint_every: int = 100  # and at the end
    evaluate_every: int = 0  # 0: only at the end
    max_nonfinite_steps: int = 3  # in a row whose update is skipped; so many end the run

    def __post_init__(self):
        for name in ("total_steps", "accumulation", "log_every", "checkpoint_every", "max_nonfinite_steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} = {getattr(self, name)} must be at least 1")


class Loader(Protocol):
    """Iterator of (batch, ids of its examples) whose position is JSON-able and exact."""

    def __next__(self) -> tuple[Any, Any]: ...
    def get_state(self) -> Any: ...
    def set_state(self, state: Any) -> None: ...


class Writer(Protocol):
    """Where metrics go; see `reporting.writers.MetricsWriter`. Only process 0 has one."""

    def write(self, record: Mapping[str, Any]) -> None: ...
    def truncate(self, stage: str, step: int) -> None: ...


def resume(
    state: TrainState, step: TrainStep, loader: Loader, options: FitOptions, writer: Writer | None, kept: Checkpoints
) -> Restored | None:
    """The newest whole checkpoint, the loader and the metrics set back to it; None where none exists."""
    restored = kept.resume(lambda done: step.state_at(state, done))
    if writer:
        writer.truncate(options.stage, restored.step if restored else 0)
    if restored is not None:
        loader.set_state(restored.loader)
    return restored


def fit(
    state: TrainState,
    step: TrainStep,
    loader: Loader,
    options: FitOptions,
    writer: Writer | None,
    checkpoints: Checkpoints,
    evaluate: Callable[[TrainState], Mapping[str, float]] | None = None,
    flops: Callable[[Any], float] | None = None,
    progress: Callable[[int, int, Mapping[str, float]], None] | None = None,
    profiler: Profiler | None = None,
) -> TrainState:
    """Train until `options.total_steps`, starting from the newest checkpoint where one exists.

    The device runs step n while the host makes batch n + 1; metrics are read one step late. SIGTERM
    leads to a checkpoint after the current step and `Preempted` (exit code 143); before the first step is done
    there is nothing to save, and it ends the run at once. An update whose loss or gradients are not finite is skipped;
    several in a row end the run with NotFinite, and checkpoints of the parameters that led there are deleted.

    Args:
      state: arrays, or ShapeDtypeStructs where a checkpoint exists. Donated.
      writer: None in all processes but the first, as is `progress`.
      evaluate: `state -> figures`, logged as `eval/NAME`.
      flops: `batch -> model FLOPs` of one update on it, for `model_flops_per_s` and `mfu`.
      progress: called with (step, total steps, figures of the last logged step) at every step.
      profiler: traces some of the updates.
    """
    restored = resume(state, step, loader, options, writer, checkpoints)
    state, done = (restored.state, restored.step) if restored else (step.state_at(state, 0), int(state.step))
    check_finite(state.params, f"the weights that stage {options.stage!r} begins with")
    log = _Log(options, writer, progress, Meter(state.step.sharding.device_set))
    try:
        with Preemption() as preemption:
            evaluated = True
            if evaluate and restored and not restored.evaluated:  # SIGTERM came in the midst of it
                evaluated = _evaluate(evaluate, state, done, log, preemption)
                if preemption.reached():
                    raise Preempted
            for number in range(done + 1, options.total_steps + 1):
                with preemption.interruptible() if number == done + 1 else nullcontext():
                    batches, samples = _take(loader, options, number, log.meter)
                    state, metrics = profiler.run(step, number, state, batches) if profiler else step(state, batches)
                    work = sum(map(flops, batches)) if flops else 0.0
                    log.add(number, metrics, samples, work, step.compiles)
                if evaluate and _due(number, options.evaluate_every, options):
                    log.flush()
                    evaluated = _evaluate(evaluate, state, number, log, preemption)
                ends = preemption.reached()
                if ends or _due(number, options.checkpoint_every, options):
                    log.flush()
                    if not log.skipped.in_a_row:  # else the parameters are those of an earlier step, and in doubt
                        checkpoints.save(state, loader.get_state(), evaluated)
                    log.meter.reset()
                if ends:
                    if writer and not log.skipped.in_a_row:
                        told = f"{options.stage}: SIGTERM after step {number}, which is saved; the same command goes on"
                        print(told, file=sys.stderr, flush=True)
                    raise Preempted
    except NotFinite as stop:
        checkpoints.delete_from(stop.first - 1)
        raise stop.resuming(checkpoints.latest_step()) from None
    finally:
        log.meter.close()
    return state


def _evaluate(
    evaluate: Callable[[TrainState], Mapping[str, float]],
    state: TrainState,
    number: int,
    log: "_Log",
    preemption: Preemption,
) -> bool:
    """Evaluate and log; False where SIGTERM came meanwhile, and the run that resumes has to do it."""
    try:
        with preemption.interruptible() if preemption.alone else nullcontext():
            figures = evaluate(state)
    except BaseException:  # what was raised in compiled code may come out of it as another error
        if not preemption.received:
            raise
        return False
    log.write(number, {f"eval/{name}": value for name, value in figures.items()})
    return True


def _due(number: int, every: int, options: FitOptions) -> bool:
    return number == options.total_steps or (every > 0 and number % every == 0)


def _take(loader: Loader, options: FitOptions, number: int, meter: Meter) -> tuple[list[Any], int]:
    """The batches of one update and their number of examples."""
    started = time.perf_counter()
    batches, samples = [], 0
    for _ in range(options.accumulation):
        try:
            batch, ids = next(loader)
        except StopIteration:
            raise DataError(
                f"the data of stage {options.stage!r} ended before step {number} of {options.total_steps}; "
                "raise the number of epochs or lower total_steps"
            ) from None
        batches.append(batch)
        samples += len(ids)
    meter.fetched(started)
    return batches, samples


class _Log:
    """Keeps the metrics of steps still running on the device and writes them when they are ready."""

    def __init__(self, options: FitOptions, writer: Writer | None, progress: Callable | None, meter: Meter):
        self._options, self._writer, self._progress = options, writer, progress
        self._running: list[tuple[int, dict[str, jax.Array], int]] = []
        self._tokens = self._places = self._skips = 0.0  # since the last line
        self._shown: dict[str, float] = {}  # figures of the last line
        self.skipped = SkippedSteps(options.stage, options.max_nonfinite_steps, options.total_steps)
        self.meter = meter

    def add(self, number: int, metrics: dict[str, jax.Array], samples: int, flops: float, compiles: int) -> None:
        """Step `number` has been handed to the device; waits for the one before it."""
        self.meter.watch(metrics["loss"])
        self.flush()
        self.meter.add(samples, flops)
        self._running.append((number, metrics, compiles))

    def flush(self) -> None:
        """Wait for the running steps and write those that are due."""
        running, self._running = self._running, []
        for number, metrics, compiles in running:
            figures = {name: float(value) for name, value in jax.device_get(metrics).items()}
            self._tokens += figures.pop("tokens", 0.0)
            self._places += figures.pop("places", 0.0)
            self._skips += figures.get("skipped", 0.0)
            self.skipped.check(number, figures)
            if _due(number, self._options.log_every, self._options):
                rates = self.meter.read(self._tokens, self._places)
                figures |= rates | {"compiles": compiles, "skipped": self._skips}
                self._tokens = self._places = self._skips = 0.0
                self.write(number, figures)
                self._shown = figures
            if self._progress:
                self._progress(number, self._options.total_steps, self._shown)

    def write(self, number: int, figures: Mapping[str, float]) -> None:
        if self._writer:
            self._writer.write({"stage": self._options.stage, "step": number, **figures})
