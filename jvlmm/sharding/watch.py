"""A thread in each process that ends it, with one clear line, when another process has failed or fallen silent."""

import contextlib
import json
import os
import sys
import threading
import time
from dataclasses import astuple, dataclass
from typing import Any

from jax.errors import JaxRuntimeError

GRACE_S = 5.0  # process 0 stays so long after a failure, for the others learn of it from its service
_PERIOD_S = 1.0
_SILENCE_S = 30.0
_BEATS, _FAILURES = "jvlmm/beats/", "jvlmm/failures/"
AGAIN = "run the same command again, it resumes from the last checkpoint"


@dataclass(frozen=True)
class Failure:
    """Which process ended the job, its exit status, and why, with a remedy."""

    process: int
    status: int
    reason: str


def announce(client: Any, failure: Failure) -> None:
    """Tell the other processes through JAX's service; nothing where they or the service are gone."""
    with contextlib.suppress(JaxRuntimeError):
        client.key_value_set(f"{_FAILURES}{failure.process}", json.dumps(astuple(failure)))


def await_verdict() -> None:
    """Wait as long as a `Watch` may need to end this process for another one's silence; return if it does not."""
    time.sleep(_SILENCE_S + GRACE_S + 3 * _PERIOD_S)


class Watch(threading.Thread):
    """Beats for its own process, and looks for failures; in process 0 also for processes that no longer beat.

    JAX's own heartbeats find the same, but end a process with a stack trace, and know of no reason. They remain for
    the death of process 0, which runs the service.
    """

    def __init__(self, client: Any, process: int, count: int):
        super().__init__(name="jvlmm-watch", daemon=True)
        self._client, self._process, self._count = client, process, count
        self._stopped = threading.Event()
        self._heard: dict[int, tuple[str | None, float]] = {}  # process: its last beat, when it came

    def run(self) -> None:
        number = 0
        while not self._stopped.is_set():
            with contextlib.suppress(JaxRuntimeError):  # the service is gone: JAX ends this process by itself
                number += 1
                self._client.key_value_set(f"{_BEATS}{self._process}", str(number), allow_overwrite=True)
                for _, text in self._client.key_value_dir_get(_FAILURES):
                    self._end(Failure(*json.loads(text)))
                if self._process == 0:
                    self._listen()
            self._stopped.wait(_PERIOD_S)

    def stop(self) -> None:
        """Return when the thread has ended: one that the end of the interpreter finds in JAX's client aborts it."""
        self._stopped.set()
        self.join(5 * _PERIOD_S)

    def _listen(self) -> None:
        beats = {int(key.rpartition("/")[2]): beat for key, beat in self._client.key_value_dir_get(_BEATS)}
        now = time.monotonic()
        for process in range(1, self._count):
            beat = beats.get(process)
            if process not in self._heard or self._heard[process][0] != beat:
                self._heard[process] = beat, now
            silence = now - self._heard[process][1]
            if silence > _SILENCE_S:
                failure = Failure(process, 1, f"no sign of life for {silence:.0f} s; {AGAIN}")
                announce(self._client, failure)
                self._end(failure)

    def _end(self, failure: Failure) -> None:
        """End this process as `failure` ended, unless it is this one's own."""
        if failure.process == self._process:
            return
        line = f"process {failure.process} of {self._count} ended the job: {failure.reason}"
        print(f"jvlmm: error: {line}", file=sys.stderr, flush=True)
        if self._process == 0:
            time.sleep(GRACE_S)
        os._exit(failure.status)
