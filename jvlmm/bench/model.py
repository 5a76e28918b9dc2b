"""`jvlmm bench model`: the same weights and the same batch on two implementations, round by round in one run."""

import importlib.util
import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from jvlmm.bench.hardware import describe
from jvlmm.bench.process import BenchError, WorkerProcess
from jvlmm.bench.worker import MEASURES
from jvlmm.bench.workload import Workload, make_arrays
from jvlmm.models.presets import PRESETS
from jvlmm.sharding.accelerators import accelerator_of

SIDES = ("jvlmm", "transformers")
_LOSS_TOLERANCE = 1e-3  # relative; losses of the first step with the same weights


def run(
    preset: str = "small",
    against: str = "transformers",
    workload: Workload | None = None,
    threads: int = 2,
    rounds: int = 7,
) -> dict[str, Any]:
    """Measure both sides, each in its own process bound to the same `threads` cores.

    Ratios of speed are ours over theirs (above 1: we are faster), of medians over `rounds` that alternate between the
    sides; the ratio of memory is ours over theirs in bytes (below 1: we need less).

    Returns {"bench", "hardware", "command", "sizes", "measures": [{"name", "value", "unit"}]}.
    Raises BenchError where PyTorch is missing, a side fails, or the sides do not compute the same.
    """
    if preset not in PRESETS:
        raise BenchError(f"--preset {preset!r} is not known; choose one of {', '.join(PRESETS)}")
    if importlib.util.find_spec("torch") is None:
        raise BenchError("--against transformers needs PyTorch, which is not installed: pip install torch")
    workload = workload or Workload()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_inputs(folder, preset, workload)
        peaks = {side: _training_peak(side, folder, threads) for side in SIDES}
        seconds, facts = _measure_speed(folder, threads, rounds)
    own = facts["jvlmm"]
    return {
        "bench": "model",
        "hardware": describe(threads, own["device_kind"]),
        "command": f"jvlmm bench model --preset {preset} --against {against} --json",
        "preset": preset,
        "rounds": rounds,
        "sizes": workload.sizes(PRESETS[preset]),
        "measures": [*_ratios(seconds, peaks), *_raw(seconds, peaks), *_shares(own, seconds["jvlmm"], workload)],
    }


def write_inputs(folder: Path, preset: str, workload: Workload) -> None:
    """Random weights as a float32 checkpoint, the batch and its sizes, for both sides to read."""
    import jax

    from jvlmm.models.huggingface import save_checkpoint
    from jvlmm.models.qwen2_5_vl import init_params

    config = PRESETS[preset]
    save_checkpoint(folder, init_params(config, jax.random.key(0)), config, dtype="float32")
    make_arrays(workload, config).save(folder)
    (folder / "workload.json").write_text(json.dumps(asdict(workload)))


def _training_peak(side: str, folder: Path, threads: int) -> int:
    """Bytes at the peak of train steps, in a process that has done nothing else."""
    with WorkerProcess(side, folder, threads) as worker:
        return worker.ask("memory")["bytes"]


def _measure_speed(folder, threads, rounds):
    """({side: {measure: [seconds]}}, {side: facts}) of alternating rounds after one that is not counted."""
    with WorkerProcess(SIDES[0], folder, threads) as own, WorkerProcess(SIDES[1], folder, threads) as other:
        workers = dict(zip(SIDES, (own, other), strict=True))
        _check_equal(
            {side: {name: worker.ask(name)["result"] for name in MEASURES} for side, worker in workers.items()}
        )
        seconds = {side: {name: [] for name in MEASURES} for side in SIDES}
        for name in MEASURES:
            for _ in range(rounds):
                for side, worker in workers.items():
                    seconds[side][name].append(worker.ask(name)["seconds"])
        return seconds, {side: worker.ask("facts") for side, worker in workers.items()}


def _check_equal(results):
    """BenchError unless both sides decode the same tokens and compute the same loss from the same weights."""
    own, other = (results[side] for side in SIDES)
    if abs(own["train"] - other["train"]) > _LOSS_TOLERANCE * abs(other["train"]):
        raise BenchError(f"the sides do not compute the same: loss {own['train']} against {other['train']}")
    if own["decode"] != other["decode"]:
        raise BenchError("the sides do not compute the same: their greedy tokens differ")


def _ratios(seconds, peaks):
    own, other = (seconds[side] for side in SIDES)
    ratios = [(f"{name}_ratio", median(other[name]) / median(own[name])) for name in MEASURES]
    ratios.append(("train_memory_ratio", peaks[SIDES[0]] / peaks[SIDES[1]]))
    return [_measure(name, value, "ratio") for name, value in ratios]


def _raw(seconds, peaks):
    made = [_measure(f"{side}_{name}", median(times), "s") for side in SIDES for name, times in seconds[side].items()]
    return made + [_measure(f"{side}_train_memory", peaks[side], "bytes") for side in SIDES]


def _shares(facts, seconds, workload):
    """MFU of the train step and the share of memory bandwidth while decoding; nothing on a CPU."""
    peak = accelerator_of(facts["device_kind"])
    if facts["platform"] == "cpu" or peak is None:
        return []
    per_token = median(seconds["decode"]) / (workload.new_tokens - 1)
    return [
        _measure("train_mfu", facts["train_flops"] / median(seconds["train"]) / peak.bfloat16_flops, "share"),
        _measure("decode_bandwidth", facts["decode_bytes"] / per_token / peak.memory_bytes_per_second, "share"),
    ]


def _measure(name, value, unit):
    return {"name": name, "value": round(value, 4), "unit": unit}
