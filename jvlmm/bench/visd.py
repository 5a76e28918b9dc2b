"""`jvlmm bench visd`: what a step with a teacher costs, against a step of GRPO."""

import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from jvlmm.bench.group_workload import GroupWorkload
from jvlmm.bench.hardware import describe
from jvlmm.bench.process import BenchError, WorkerProcess
from jvlmm.bench.rounds import check_preset, check_repeats, in_rounds, measure, write_model
from jvlmm.models.presets import PRESETS

_SIDE = "taught"
_GRPO = ("rollout", "update")
_VISD = ("rollout", "teach", "taught_update", "follow")
_MEASURES = ("rollout", "update", "teach", "taught_update", "follow")


def run(
    preset: str = "small", workload: GroupWorkload | None = None, threads: int = 2, rounds: int = 3
) -> dict[str, Any]:
    """Measure the parts of both steps in one process bound to `threads` cores, in alternating rounds.

    A step of GRPO is a rollout and an update; one of VISD a rollout, the teacher's pass over as many completions, each
    after hindsight of `taught.HINDSIGHT` tokens, an update with weights, and the moving average. The tower is trained,
    so that the teacher sees with its own. Not counted are rewards and the judge, who is asked meanwhile.

    Returns {"bench", "hardware", "command", "preset", "rounds", "sizes", "measures": [{"name", "value", "unit"}]}.
    Raises BenchError where a side fails or does not do the work.
    """
    check_preset(preset)
    config, workload = PRESETS[preset], workload or GroupWorkload()
    workload.check(config)
    check_repeats(threads, rounds)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_model(folder, preset)
        workload.save(folder)
        with WorkerProcess(_SIDE, folder, threads) as worker:
            results = {name: worker.ask(name).get("result") for name in _MEASURES}  # compiles
            _check(results, workload)
            pairs = tuple((_SIDE, name) for name in _MEASURES)
            seconds = in_rounds({_SIDE: worker}, (pairs,), rounds)[_SIDE]
            kind = worker.ask("device_kind")["result"]
    medians = {name: median(times) for name, times in seconds.items()}
    steps = {name: sum(medians[part] for part in parts) for name, parts in (("grpo", _GRPO), ("visd", _VISD))}
    return {
        "bench": "visd",
        "hardware": describe(threads, kind),
        "command": f"jvlmm bench visd --preset {preset} {workload.flags} --threads {threads} --rounds {rounds} --json",
        "preset": preset,
        "rounds": rounds,
        "sizes": workload.sizes(config),
        "measures": [
            measure("step_ratio", steps["visd"] / steps["grpo"], "ratio"),
            *(measure(f"{name}_step", value, "s") for name, value in steps.items()),
            *(measure(name, value, "s") for name, value in medians.items()),
        ],
    }


def _check(results: dict[str, Any], workload: GroupWorkload) -> None:
    """BenchError unless all tokens were weighed by what the teacher held of its words."""
    tokens = workload.group * workload.completion
    if results["taught_update"] != tokens or results["teach"] < 2:
        raise BenchError(
            f"{results['taught_update']} of {tokens} tokens were weighed, by {results['teach']} words of the teacher"
        )
