"""`jvlmm bench vreason`: what V-Reason adds to the price of a token, against plain decoding in one run."""

import tempfile
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from jvlmm.bench.hardware import describe
from jvlmm.bench.process import BenchError, WorkerProcess
from jvlmm.bench.rounds import check_preset, check_repeats, in_rounds, measure, write_model
from jvlmm.bench.steered import CONTROLLERS, SteeredWorkload, tail_share
from jvlmm.models.presets import PRESETS

SIDES = tuple(CONTROLLERS)
_TOGETHER = tuple(tuple((side, name) for side in SIDES) for name in ("tokens", "prefill"))


def run(
    preset: str = "small", workload: SteeredWorkload | None = None, threads: int = 2, rounds: int = 5
) -> dict[str, Any]:
    """Measure plain decoding, V-Reason at k = 1 and 2, and its Lite, each in its own process on the same cores.

    Costs are seconds over those of plain decoding (above 1: dearer), of medians over alternating rounds: of a token,
    and of the prefill. `tail_share` is the share of the weights that an update reads again.

    Returns {"bench", "hardware", "command", "preset", "rounds", "sizes", "measures": [{"name", "value", "unit"}]}.
    Raises BenchError where a size cannot be made, or a side writes fewer tokens than asked.
    """
    check_preset(preset)
    workload = workload or SteeredWorkload()
    workload.check()
    check_repeats(threads, rounds)
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        folder = Path(scratch)
        write_model(folder, preset)
        workload.save(folder)
        workers = {side: stack.enter_context(WorkerProcess(side, folder, threads)) for side in SIDES}
        for side, worker in workers.items():
            _check_tokens(side, worker.ask("tokens")["result"], workload)
        seconds = in_rounds(workers, _TOGETHER, rounds)
        facts = {side: worker.ask("facts") for side, worker in workers.items()}
    sizes = {"video_tokens": workload.video_tokens, "batch": workload.batch, "new_tokens": workload.new_tokens}
    given = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in sizes.items())
    return {
        "bench": "vreason",
        "hardware": describe(threads, facts["plain"]["device_kind"]),
        "command": f"jvlmm bench vreason --preset {preset} {given} --threads {threads} --rounds {rounds} --json",
        "preset": preset,
        "rounds": rounds,
        "sizes": sizes,
        "measures": [measure("tail_share", tail_share(PRESETS[preset]), "share"), *_costs(seconds, facts, workload)],
    }


def _check_tokens(side: str, lengths: list[int], workload: SteeredWorkload) -> None:
    if lengths != [workload.new_tokens] * workload.batch:
        raise BenchError(f"the {side} side wrote {lengths} tokens, not {workload.new_tokens} in each row")


def _costs(seconds, facts, workload: SteeredWorkload) -> list[dict[str, object]]:
    """Ratios first, then what they are made of."""
    tokens, prefill = ({side: median(seconds[side][name]) for side in SIDES} for name in ("tokens", "prefill"))
    steered = SIDES[1:]
    names = {"k1": "cost_k1", "k2": "cost_k2", "lite": "lite_cost"}
    costs = [measure(names[side], tokens[side] / tokens["plain"], "ratio") for side in steered]
    costs += [measure(f"prefill_cost_{side}", prefill[side] / prefill["plain"], "ratio") for side in steered]
    steps = workload.new_tokens - 1
    costs += [measure(f"{side}_token", 1e3 * tokens[side] / steps, "ms") for side in SIDES]
    costs += [measure(f"{side}_prefill", prefill[side], "s") for side in SIDES]
    return costs + [measure(f"{side}_cache", facts[side]["cache_bytes"], "bytes") for side in ("plain", "lite")]
