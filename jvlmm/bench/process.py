"""A worker process as its parent sees it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from jvlmm.errors import JvlmmError

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NPROC")


class BenchError(JvlmmError):
    """A side that cannot be measured, or sides that do not compute the same."""


class WorkerProcess:
    """One side, bound to as many cores as it may use threads; a context manager that ends the process."""

    def __init__(self, side: str, folder: Path, threads: int):
        self.side = side
        self._log = folder / f"{side}.log"
        environment = os.environ | dict.fromkeys(_THREAD_VARIABLES, str(threads))
        environment["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # both sides live on one accelerator
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "jvlmm.bench.worker", side, str(folder), str(threads)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment,
            )

    def ask(self, what: str, **details: Any) -> dict[str, Any]:
        """The answer to one request; BenchError with the last line of the worker's log where it died."""
        try:
            print(json.dumps({"do": what, **details}), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self._process.wait()
            last = (self._log.read_text().strip().splitlines() or ["no message"])[-1]
            raise BenchError(f"the {self.side} side stopped while measuring {what}: {last}")
        return json.loads(line)

    def __enter__(self) -> "WorkerProcess":
        return self

    def __exit__(self, *_) -> None:
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()
