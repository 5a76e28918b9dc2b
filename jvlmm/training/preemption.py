"""SIGTERM as a flag: cloud machines announce their end with it, and leave time for one checkpoint."""

import signal
import threading
from types import FrameType

EXIT_CODE = 128 + signal.SIGTERM  # 143, what a shell reports for a process that SIGTERM ended


class Preempted(SystemExit):
    """Raised after the checkpoint that answers a SIGTERM; ends the process with exit code 143."""

    def __init__(self):
        super().__init__(EXIT_CODE)


class Preemption:
    """Context in which SIGTERM sets `requested` instead of ending the process.

    Python allows signal handlers in the main thread only; elsewhere `requested` stays False.
    """

    def __init__(self):
        self.requested = False

    def _request(self, signum: int, frame: FrameType | None) -> None:
        self.requested = True

    def __enter__(self) -> "Preemption":
        self._in_main_thread = threading.current_thread() is threading.main_thread()
        if self._in_main_thread:
            self._previous = signal.signal(signal.SIGTERM, self._request)
        return self

    def __exit__(self, *_) -> None:
        if self._in_main_thread:
            signal.signal(signal.SIGTERM, self._previous)
