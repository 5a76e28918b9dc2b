"""A checkpoint's chat template, rendered where it can do no harm."""

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

from jvlmm.errors import DataError, JvlmmError

CPU_SECONDS = 5.0  # of one conversation; Qwen2.5-VL's takes under a millisecond
WALL_SECONDS = 60.0  # on a loaded machine
MEMORY_BYTES = 2**30
LARGEST_TEMPLATE = 2**20  # characters
# As for video workers: a plain interpreter, which never imports the caller's main module.
_PROGRAM = (
    "import sys; sys.path[:] = sys.argv[3:]; from jvlmm.data.chat_template_worker import serve; "
    "serve(float(sys.argv[1]), int(sys.argv[2]))"
)


class ChatTemplateError(DataError):
    """What a template itself does not accept, or what its sandbox does not."""


class ChatTemplate:
    """Renders conversations with a template in a process of its own, within limits of time, memory and output.

    Any number of threads may call it. The process starts with the first conversation and ends with this object; one
    that was ended for a limit is replaced.
    """

    def __init__(self, template: str, variables: Mapping[str, Any], source: str):
        """`variables` are what the template may use besides the conversation; `source` names it in errors."""
        if len(template) > LARGEST_TEMPLATE:
            raise DataError(f"{source} has over {LARGEST_TEMPLATE} characters; restore the checkpoint's own")
        self._first = (json.dumps({"template": template, "variables": dict(variables)}) + "\n").encode()
        self._source = source
        self._lock = threading.Lock()
        self._process: subprocess.Popen | None = None
        self._finalizer = None

    def render(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool) -> str:
        """Returns the conversation as text.

        Raises ChatTemplateError with what the template says, and DataError where it takes too long or ends its
        process.
        """
        request = json.dumps({"messages": messages, "add_generation_prompt": add_generation_prompt})
        with self._lock:
            try:
                answer = json.loads(self._ask((request + "\n").encode()))
            except BaseException:  # an interrupt, too, leaves half a message behind
                self._stop()
                raise
        if "error" in answer:
            raise ChatTemplateError(f"{self._source} fails: {answer['error']}; use the template of Qwen2.5-VL")
        return answer["text"]

    def _ask(self, request: bytes) -> bytes:
        """One answer, without its line break. The lock is held."""
        if self._process is None:
            self._start()
            request = self._first + request
        process, deadline = self._process, time.monotonic() + WALL_SECONDS
        received = bytearray()
        try:
            process.stdin.write(request)
            process.stdin.flush()
            poll = select.poll()
            poll.register(process.stdout, select.POLLIN)
            while not received.endswith(b"\n"):
                if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                    raise DataError(f"{self._source} takes longer than {WALL_SECONDS:g} s; use that of Qwen2.5-VL")
                part = os.read(process.stdout.fileno(), 2**20)
                if not part:
                    raise EOFError
                received += part
        except (EOFError, OSError):
            raise self._ended(process.wait()) from None
        return bytes(received)

    def _ended(self, status: int) -> JvlmmError:
        """Says why the process is no more."""
        if status == -signal.SIGPROF:
            return DataError(
                f"{self._source} takes more than {CPU_SECONDS:g} s for one conversation; use that of Qwen2.5-VL"
            )
        if status < 0 or status == os.EX_OK:
            return DataError(f"{self._source} ends its process (signal {-status}); use that of Qwen2.5-VL")
        return JvlmmError(
            f"the process that renders chat templates does not start (exit status {status}); check that "
            f"{sys.executable} can import jvlmm and jinja2"
        )

    def _start(self) -> None:
        arguments = [sys.executable, "-c", _PROGRAM, str(CPU_SECONDS), str(MEMORY_BYTES), *sys.path]
        self._process = subprocess.Popen(
            arguments,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # an interrupt of the terminal is the caller's affair
        )
        self._finalizer = weakref.finalize(self, _end, self._process)

    def _stop(self) -> None:
        """End the process, if there is one."""
        if self._finalizer is not None:
            self._finalizer()
        self._process = self._finalizer = None


def _end(process: subprocess.Popen) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        try:
            pipe.close()
        except OSError:  # what was still to be written has no reader
            continue
