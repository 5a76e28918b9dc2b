"""`jvlmm bench grpo`: one step of GRPO with the prompt shared by its group, against the usual layout."""

import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from jvlmm.bench.group_workload import GroupWorkload
from jvlmm.bench.hardware import describe
from jvlmm.bench.process import BenchError, WorkerProcess
from jvlmm.bench.rounds import Seconds, check_preset, check_repeats, in_rounds, measure, write_model
from jvlmm.models.presets import PRESETS
from jvlmm.sharding.accelerators import accelerator_of

SIDES = ("shared", "naive")
Facts = dict[str, dict[str, Any]]  # of every side
_TOGETHER = (
    (("shared", "rollout"), ("shared", "rollout_one"), ("naive", "rollout")),
    (("shared", "update"), ("naive", "update")),
)
# Relative; of loss, gradient norm and log-probs of the first update with the same weights.
_TOLERANCE = {"float32": 1e-3, "bfloat16": 2e-2}


def run(
    preset: str = "small", workload: GroupWorkload | None = None, threads: int = 2, rounds: int = 3
) -> dict[str, Any]:
    """Measure both layouts, each in its own process bound to the same `threads` cores.

    Speed-ups are naive over shared, of medians over alternating rounds; a step is a rollout and an update, for rewards
    are the same. The ratio of memory is shared over naive, of updates in one device step, by what their programs
    allocate; naive, which is timed row by row, needs `naive_row_update_memory` then.

    Returns {"bench", "hardware", "command", "preset", "rounds", "sizes", "measures": [{"name", "value", "unit"}]}.
    Raises BenchError where a layout fails, or the two do not compute the same.
    """
    check_preset(preset)
    config, workload = PRESETS[preset], workload or GroupWorkload()
    workload.check(config)
    check_repeats(threads, rounds)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_model(folder, preset)
        workload.save(folder)
        seconds, facts = _measure_speed(folder, threads, rounds, workload)
    return {
        "bench": "grpo",
        "hardware": describe(threads, facts["shared"]["device_kind"]),
        "command": f"jvlmm bench grpo --preset {preset} {workload.flags} --threads {threads} --rounds {rounds} --json",
        "preset": preset,
        "rounds": rounds,
        "sizes": workload.sizes(config),
        "measures": [*_ratios(seconds, facts, workload.group), *_raw(seconds, facts), *_shares(seconds, facts)],
    }


def _measure_speed(folder: Path, threads: int, rounds: int, workload: GroupWorkload) -> tuple[Seconds, Facts]:
    """(seconds, facts) of alternating rounds after one that is not counted."""
    with WorkerProcess(SIDES[0], folder, threads) as shared, WorkerProcess(SIDES[1], folder, threads) as naive:
        workers = dict(zip(SIDES, (shared, naive), strict=True))
        results: dict[str, dict[str, Any]] = {side: {} for side in SIDES}
        for side, name in (pair for measures in _TOGETHER for pair in measures):
            results[side][name] = workers[side].ask(name)["result"]
        seconds = in_rounds(workers, _TOGETHER, rounds)
        facts = {side: worker.ask("facts") for side, worker in workers.items()}  # compiles updates as a whole
        _check_equal(results, workload, facts["shared"]["dtype"])
        return seconds, facts


def _check_equal(results: dict[str, dict[str, Any]], workload: GroupWorkload, dtype: str = "float32") -> None:
    """BenchError unless both did the work: as many tokens, and the same first update."""
    shared, naive = (results[side]["update"] for side in SIDES)
    for name, value in naive.items():
        if not abs(shared[name] - value) <= _TOLERANCE[dtype] * max(abs(value), 1e-2):
            raise BenchError(f"the layouts do not compute the same: {name} {shared[name]} against {value}")
    for side in SIDES:
        lengths = [len(tokens) for tokens in results[side]["rollout"]]
        if lengths != [workload.completion] * workload.group:
            raise BenchError(f"the {side} layout drew completions of {lengths} tokens, not of {workload.completion}")


def _ratios(seconds: Seconds, facts: Facts, group: int) -> list[dict[str, object]]:
    update, rollout = ([median(seconds[side][name]) for side in SIDES] for name in ("update", "rollout"))
    ratios = {
        "update_speedup": update[1] / update[0],
        "step_speedup": (update[1] + rollout[1]) / (update[0] + rollout[0]),
        "update_memory_ratio": facts["shared"]["update_memory"] / facts["naive"]["update_memory"],
        f"rollout_{group}_over_1": rollout[0] / median(seconds["shared"]["rollout_one"]),
    }
    return [measure(name, value, "ratio") for name, value in ratios.items()]


def _raw(seconds: Seconds, facts: Facts) -> list[dict[str, object]]:
    made = [measure(f"{side}_{name}", median(times), "s") for side in SIDES for name, times in seconds[side].items()]
    of_updates = [(f"{side}_update_memory", facts[side]["update_memory"]) for side in SIDES]
    of_updates.append(("naive_row_update_memory", facts["naive"]["row_update_memory"]))
    return made + [measure(name, value, "bytes") for name, value in of_updates]


def _shares(seconds: Seconds, facts: Facts) -> list[dict[str, object]]:
    """MFU of the shared update, its FLOPs counted once for prompt and media; nothing on a CPU."""
    shared = facts["shared"]
    peak = accelerator_of(shared["device_kind"])
    if shared["platform"] == "cpu" or peak is None:
        return []
    per_second = shared["update_flops"] / median(seconds["shared"]["update"])
    return [measure("shared_update_mfu", per_second / peak.bfloat16_flops, "share")]
