"""One side in a process of its own: JSON lines in, JSON lines out.

python -m jvlmm.bench.worker SIDE FOLDER THREADS
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any, Protocol

from jvlmm.bench.memory import peak_bytes, reset_peak
from jvlmm.bench.workload import Workload
from jvlmm.training.host_memory import keep_freed_memory

MEASURES = ("tower", "prefill", "decode", "train")


class Side(Protocol):
    """A model with its batch. Every method does its work once and returns when it is done."""

    def tower(self) -> None:
        """Patches to visual features."""

    def prefill(self) -> None:
        """Tower, decoder, cache, and the first new token of every row."""

    def decode(self) -> list[int]:
        """The other new tokens, from the cache that `prefill` left, which may be used up. Returns all new tokens."""

    def train(self) -> float:
        """Forward and backward pass and an AdamW update; returns the loss before it."""

    def facts(self) -> dict[str, Any]:
        """The platform, and what only this side can count."""


def open_side(name: str, folder: Path, workload: Workload) -> Side:
    """Import one framework, never both: each brings threads and memory of its own."""
    if name == "jvlmm":
        from jvlmm.bench.own import Own

        return Own(folder, workload)
    from jvlmm.bench.reference import Reference

    return Reference(folder, workload)


def timed(side: Side, measure: str) -> tuple[float, Any]:
    """(seconds, result) of one measure."""
    if measure == "decode":
        side.prefill()
    begin = time.perf_counter()
    result = getattr(side, measure)()
    return time.perf_counter() - begin, result


def training_peak(side: Side, steps: int = 2) -> int:
    """Bytes of memory at the peak of train steps after the first ones."""
    for _ in range(steps):
        side.train()
    reset_peak()
    for _ in range(steps):
        side.train()
    return peak_bytes()


def serve(side: Side, requests, answer) -> None:
    """Answer requests until they end: {"do": "facts" | "memory" | a measure}."""
    for line in requests:
        what = json.loads(line)["do"]
        if what == "facts":
            answer(side.facts())
        elif what == "memory":
            answer({"bytes": training_peak(side)})
        else:
            seconds, result = timed(side, what)
            answer({"seconds": seconds, "result": result})


def main() -> None:
    name, folder, threads = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])  # XLA starts as many threads as it has cores
    keep_freed_memory()  # as training does; the other side gains from it too
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is no answer

    def answer(value: dict[str, Any]) -> None:
        print(json.dumps(value), file=answers, flush=True)

    workload = Workload(**json.loads((folder / "workload.json").read_text()))
    serve(open_side(name, folder, workload), sys.stdin, answer)


if __name__ == "__main__":
    main()
