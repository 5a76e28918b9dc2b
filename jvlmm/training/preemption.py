"""SIGTERM as a flag: cloud machines announce their end with it, and leave time for one checkpoint."""

import signal
import threading
from types import FrameType

import jax
from jax.experimental import multihost_utils

EXIT_CODE = 128 + signal.SIGTERM  # 143, what a shell reports for a process that SIGTERM ended


class Preempted(SystemExit):
    """Raised after the checkpoint that answers a SIGTERM; ends the process with exit code 143."""

    def __init__(self):
        super().__init__(EXIT_CODE)


class Preemption:
    """Context in which SIGTERM asks for an end instead of ending the process.

    With several processes JAX's own service listens for the signal, and all of them learn of it at the
    same step. Alone, Python's handler sets a flag; it can do so in the main thread only, elsewhere SIGTERM
    keeps its usual effect.
    """

    def __init__(self):
        self._received = False
        in_main_thread = threading.current_thread() is threading.main_thread()
        self._listens = in_main_thread and jax.process_count() == 1

    def reached(self, step: int) -> bool:
        """Whether to save and end after `step`; every process must ask at every step."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._received

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        self._received = True

    def __enter__(self) -> "Preemption":
        if self._listens:
            self._previous = signal.signal(signal.SIGTERM, self._receive)
        return self

    def __exit__(self, *_) -> None:
        if self._listens:
            signal.signal(signal.SIGTERM, self._previous)
