"""Seconds of work on the device, without those in which its programs were made."""

import threading
import time

import jax

_MADE = (  # what JAX tells of, as it ends
    "/jax/core/compile/jaxpr_trace_duration",
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
    "/jax/core/compile/backend_compile_duration",
    "/jax/compilation_cache/cache_retrieval_time_sec",
)


class _Making(threading.local):
    """When this thread has traced and compiled: intervals in order, those within others left out."""

    def __init__(self):
        self.intervals: list[tuple[float, float]] = []

    def add(self, seconds: float) -> None:
        end = time.perf_counter()
        while self.intervals and self.intervals[-1][0] >= end - seconds:
            self.intervals.pop()
        self.intervals.append((end - seconds, end))

    def seconds_since(self, begun: float) -> float:
        return sum(end - max(begin, begun) for begin, end in self.intervals if end > begun)


_making = _Making()


def _note(event: str, seconds: float, **_) -> None:
    if event in _MADE:
        _making.add(seconds)


jax.monitoring.register_event_duration_secs_listener(_note)


def seconds_of_work(begun: float) -> float:
    """Seconds of this thread since `begun`, a time of `time.perf_counter`, less those of tracing and compiling."""
    return time.perf_counter() - begun - _making.seconds_since(begun)
