"""What every comparison of two sides has in common: alternating rounds, peaks of memory, and how figures are given."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from jvlmm.bench.process import BenchError, WorkerProcess
from jvlmm.models.presets import PRESETS

Seconds = dict[str, dict[str, list[float]]]  # of every side and measure, one a round


def check_preset(preset: str) -> None:
    """BenchError unless there is such a model."""
    if preset not in PRESETS:
        raise BenchError(f"--preset {preset!r} is not known; choose one of {', '.join(PRESETS)}")


def check_repeats(threads: int, rounds: int) -> None:
    """BenchError where there is nothing to measure with, or nothing to measure."""
    for name, value in (("threads", threads), ("rounds", rounds)):
        if value < 1:
            raise BenchError(f"--{name} {value} is too small; give at least 1")


def write_model(folder: Path, preset: str) -> None:
    """Random weights as a float32 checkpoint, for both sides to read."""
    import jax

    from jvlmm.models.huggingface import save_checkpoint
    from jvlmm.models.qwen2_5_vl import init_params

    jax.config.update("jax_platforms", "cpu")  # an accelerator and its memory are for the workers
    config = PRESETS[preset]
    save_checkpoint(folder, init_params(config, jax.random.key(0)), config, dtype="float32")


def in_rounds(
    workers: Mapping[str, WorkerProcess], together: Sequence[Sequence[tuple[str, str]]], rounds: int
) -> Seconds:
    """Take the measures (side, name) that stand together in turn, `rounds` times, then those that stand next.

    Whatever disturbs the machine for a while so falls on all that are compared.
    """
    seconds: Seconds = {side: {} for side in workers}
    for measures in together:
        for _ in range(rounds):
            for side, name in measures:
                seconds[side].setdefault(name, []).append(workers[side].ask(name)["seconds"])
    return seconds


def peak_alone(side: str, folder: Path, threads: int, name: str, times: int) -> int:
    """Bytes at the peak of a measure, in a process that has done nothing else."""
    with WorkerProcess(side, folder, threads) as worker:
        return worker.ask("memory", of=name, times=times)["bytes"]


def measure(name: str, value: float, unit: str) -> dict[str, object]:
    """A figure of the report."""
    return {"name": name, "value": round(value, 4), "unit": unit}
