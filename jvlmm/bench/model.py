"""`jvlmm bench model`: the same weights and the same batch on two implementations, round by round in one run."""

import importlib.util
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from jvlmm.bench.hardware import describe
from jvlmm.bench.process import BenchError, WorkerProcess
from jvlmm.bench.rounds import check_preset, in_rounds, measure, peak_alone, write_model
from jvlmm.bench.workload import Workload, make_arrays
from jvlmm.models.presets import PRESETS
from jvlmm.sharding.accelerators import accelerator_of

SIDES = ("jvlmm", "transformers")
MEASURES = (
    "tower",  # patches to visual features
    "prefill",  # tower, decoder, cache, and the first new token of every row
    "decode",  # the other new tokens, from the cache that `prefill` left, which may be used up; returns all new tokens
    "train",  # forward and backward pass and an AdamW update; returns the loss before it
)
_LOSS_TOLERANCE = {"float32": 1e-3, "bfloat16": 2e-2}  # relative; losses of the first step with the same weights


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
    check_preset(preset)
    if importlib.util.find_spec("torch") is None:
        raise BenchError("--against transformers needs PyTorch, which is not installed: pip install torch")
    workload = workload or Workload()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_inputs(folder, preset, workload)
        peaks = {side: peak_alone(side, folder, threads, "train", times=2) for side in SIDES}
        seconds, facts, agreeing = _measure_speed(folder, threads, rounds)
    own = facts["jvlmm"]
    return {
        "bench": "model",
        "hardware": describe(threads, own["device_kind"]),
        "command": f"jvlmm bench model --preset {preset} --against {against} --json",
        "preset": preset,
        "rounds": rounds,
        "sizes": workload.sizes(PRESETS[preset]),
        "measures": [
            *_ratios(seconds, peaks),
            *_raw(seconds, peaks),
            *_shares(own, seconds["jvlmm"], workload),
            *agreeing,
        ],
    }


def write_inputs(folder: Path, preset: str, workload: Workload) -> None:
    """Random weights as a float32 checkpoint, the batch and its sizes, for both sides to read."""
    write_model(folder, preset)
    make_arrays(workload, PRESETS[preset]).save(folder)
    workload.save(folder)


def _measure_speed(folder, threads, rounds):
    """({side: {measure: [seconds]}}, {side: facts}, [measure]) of alternating rounds after one that is not counted."""
    with WorkerProcess(SIDES[0], folder, threads) as own, WorkerProcess(SIDES[1], folder, threads) as other:
        workers = dict(zip(SIDES, (own, other), strict=True))
        facts = {side: worker.ask("facts") for side, worker in workers.items()}
        results = {side: {name: worker.ask(name)["result"] for name in MEASURES} for side, worker in workers.items()}
        agreeing = _check_equal(results, facts["jvlmm"]["dtype"])
        seconds = in_rounds(workers, [[(side, name) for side in SIDES] for name in MEASURES], rounds)
        return seconds, facts, agreeing


def _check_equal(results, dtype):
    """BenchError unless both sides decode the same tokens and compute the same loss from the same weights.

    In bfloat16 rounding decides between words that are about as likely: their share of equal tokens is a measure then.
    """
    own, other = (results[side] for side in SIDES)
    if abs(own["train"] - other["train"]) > _LOSS_TOLERANCE[dtype] * abs(other["train"]):
        raise BenchError(f"the sides do not compute the same: loss {own['train']} against {other['train']}")
    equal = sum(a == b for a, b in zip(own["decode"], other["decode"], strict=True)) / len(own["decode"])
    if dtype == "float32" and equal < 1:
        raise BenchError("the sides do not compute the same: their greedy tokens differ")
    return [] if dtype == "float32" else [measure("equal_tokens", equal, "share")]


def _ratios(seconds, peaks):
    own, other = (seconds[side] for side in SIDES)
    ratios = [(f"{name}_ratio", median(other[name]) / median(own[name])) for name in MEASURES]
    ratios.append(("train_memory_ratio", peaks[SIDES[0]] / peaks[SIDES[1]]))
    return [measure(name, value, "ratio") for name, value in ratios]


def _raw(seconds, peaks):
    made = [measure(f"{side}_{name}", median(times), "s") for side in SIDES for name, times in seconds[side].items()]
    return made + [measure(f"{side}_train_memory", peaks[side], "bytes") for side in SIDES]


def _shares(facts, seconds, workload):
    """MFU of the train step and the share of memory bandwidth while decoding; nothing on a CPU."""
    peak = accelerator_of(facts["device_kind"])
    if facts["platform"] == "cpu" or peak is None:
        return []
    per_token = median(seconds["decode"]) / (workload.new_tokens - 1)
    return [
        measure("train_mfu", facts["train_flops"] / median(seconds["train"]) / peak.bfloat16_flops, "share"),
        measure("decode_bandwidth", facts["decode_bytes"] / per_token / peak.memory_bytes_per_second, "share"),
    ]
