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
from jvlmm.training.host_memory import keep_freed_memory

BEFORE = {"decode": "prefill", "tokens": "copied"}  # what has to be done before a measure, and is not counted
_LARGE = ("shared", "naive")  # sides that do not fit beside each other unless they give back what they free


class Side(Protocol):
    """A model with its inputs, opened in the folder that holds them.

    Each measure is a method of its name, which does the work once, returns when it is done, and may return what the
    other side must return too, ready for JSON.
    """

    def facts(self) -> dict[str, Any]:
        """The platform, and what only this side can count."""

    def device_peak(self) -> int | None:
        """Bytes of the accelerator's memory at the peak of this process; None on a CPU."""


def open_side(name: str, folder: Path) -> Side:
    """Import what this side needs and no more: each framework brings threads and memory of its own."""
    match name:
        case "jvlmm":
            from jvlmm.bench.own import Own as Chosen
        case "transformers":
            from jvlmm.bench.reference import Reference as Chosen
        case "shared":
            from jvlmm.bench.layouts import Shared as Chosen
        case "naive":
            from jvlmm.bench.layouts import Naive as Chosen
        case "taught":
            from jvlmm.bench.taught import Taught as Chosen
        case _:
            from jvlmm.bench.steered import Steered

            return Steered(folder, name)
    return Chosen(folder)


def timed(side: Side, measure: str) -> tuple[float, Any]:
    """(seconds, result) of one measure."""
    if measure in BEFORE:
        getattr(side, BEFORE[measure])()
    begin = time.perf_counter()
    result = getattr(side, measure)()
    return time.perf_counter() - begin, result


def peak_of(side: Side, measure: str, times: int) -> int:
    """Bytes of memory at the peak of a measure, taken so many times after as many that do not count.

    Of an accelerator's memory those that do not count are in it, too.
    """
    for _ in range(times):
        getattr(side, measure)()
    reset_peak()
    for _ in range(times):
        getattr(side, measure)()
    return side.device_peak() or peak_bytes()


def serve(side: Side, requests, answer) -> None:
    """Answer requests until they end: {"do": "facts" | a measure} or {"do": "memory", "of": a measure, "times": n}."""
    for line in requests:
        request = json.loads(line)
        what = request["do"]
        if what == "facts":
            answer(side.facts())
        elif what == "memory":
            answer({"bytes": peak_of(side, request["of"], request["times"])})
        else:
            seconds, result = timed(side, what)
            answer({"seconds": seconds, "result": result})


def main() -> None:
    name, folder, threads = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])  # XLA starts as many threads as it has cores
    if name not in _LARGE:
        keep_freed_memory()  # as training does; the other side gains from it too
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is no answer

    def answer(value: dict[str, Any]) -> None:
        print(json.dumps(value), file=answers, flush=True)

    serve(open_side(name, folder), sys.stdin, answer)


if __name__ == "__main__":
    main()
