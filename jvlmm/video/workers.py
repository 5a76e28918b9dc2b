"""Decoding in processes that may hang or crash without harm to the one that trains."""

import os
import queue
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict
from typing import Any

from jvlmm.errors import JvlmmError, VideoError
from jvlmm.video.budget import DEFAULT_PIXELS, PixelOptions
from jvlmm.video.clip import Clip
from jvlmm.video.decode import decode_image, decode_video
from jvlmm.video.describe import describe
from jvlmm.video.fitting import Measured
from jvlmm.video.limits import DEFAULT_LIMITS, Limits
from jvlmm.video.measure import measure_image, measure_video
from jvlmm.video.sampling import DEFAULT_FRAMES, FrameOptions
from jvlmm.video.wire import receive, receive_clip, send

START_SECONDS = 60.0
MOST_WORKERS = 16  # unless more are asked for: each may take `limits.max_memory`
# A plain interpreter instead of multiprocessing: the child never imports the caller's main module, nor JAX with it.
PROGRAM = "import sys; sys.path[:] = sys.argv[2:]; from jvlmm.video.worker import serve; serve(int(sys.argv[1]))"
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class ClosedDecoderError(JvlmmError, RuntimeError):
    """A Decoder was asked after its end: no fault of the file."""


class Worker:
    """One decoding process, started when first needed and again after it was killed. Not thread-safe."""

    def __init__(self) -> None:
        self.process: subprocess.Popen | None = None
        self.connection: socket.socket | None = None

    def start(self) -> None:
        """Start the process and wait until it listens; JvlmmError where it cannot."""
        ours, theirs = socket.socketpair()
        with theirs:
            arguments = [sys.executable, "-c", PROGRAM, str(theirs.fileno()), *sys.path]
            environment = {**os.environ, **ONE_THREAD}
            self.process = subprocess.Popen(
                arguments, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, env=environment
            )
        self.connection = ours
        try:
            receive(ours, time.monotonic() + START_SECONDS)
        except (EOFError, OSError) as error:
            raise JvlmmError(
                f"video decoding process does not start ({_ending(self.stop()) or error}); check that {sys.executable} "
                "can import jvlmm, or set workers=0 for files you trust"
            ) from None

    def stop(self) -> int:
        """Kill the process, if there is one, and return its exit status, -N where signal N ended it."""
        process, connection = self.process, self.connection
        self.process = self.connection = None
        if connection is not None:
            connection.close()
        if process is None:
            return 0
        try:
            return process.wait(0.2)  # at a closed connection an idle process ends by itself
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    def ask(self, request: dict[str, Any]) -> Clip | dict[str, Any]:
        """Run one request; VideoError where it fails, takes too long or takes the process down."""
        if self.process is None or self.process.poll() is not None:
            self.stop()
            self.start()
        path, limits = request["path"], request["limits"]
        deadline = time.monotonic() + limits["wall_deadline_s"]
        try:
            send(self.connection, request)
            reply = receive(self.connection, deadline)
            if "error" in reply:
                raise VideoError(reply["error"])
            return reply["record"] if "record" in reply else receive_clip(self.connection, reply, deadline)
        except TimeoutError:
            self.stop()
            raise VideoError(
                f"{path}: not decoded within {limits['wall_deadline_s']:g} s by the clock; check that its disk answers "
                "or raise limits.wall_deadline_s"
            ) from None
        except (EOFError, OSError):
            status = self.stop()
            if status == -signal.SIGPROF:
                raise VideoError(
                    f"{path}: not decoded within {limits['deadline_s']:g} s of processor time; cut or re-encode it, "
                    "or raise limits.deadline_s"
                ) from None
            raise VideoError(
                f"{path}: crashes the decoder ({_ending(status)}); check the file or re-encode it"
            ) from None
        except VideoError:
            raise
        except BaseException:  # an interrupt leaves half a message behind
            self.stop()
            raise


def usable_cores() -> int:
    """Number of cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _ending(status: int) -> str:
    return f"signal {-status}" if status < 0 else f"exit status {status}"


class Decoder:
    """Decodes videos and images in `workers` processes; any number of threads may call it at once.

    A file that takes more time or memory than `limits` gives it, or takes its process down, costs only itself:
    VideoError, and where need be the process is replaced. With `workers=0` decoding runs in the calling process
    without bounds of time and memory: only for files one made oneself.
    """

    def __init__(self, workers: int | None = 1, limits: Limits = DEFAULT_LIMITS) -> None:
        """With `workers=None` there are as many as this process may use cores, up to `MOST_WORKERS`."""
        if workers is None:
            workers = min(usable_cores(), MOST_WORKERS)
        if workers < 0:
            raise ValueError(f"workers={workers} must not be negative")
        self.limits = limits
        self.workers = workers
        self._closed = False
        self._workers = [Worker() for _ in range(workers)]
        self._idle: queue.LifoQueue[Worker] = queue.LifoQueue()  # the last one used is the warmest
        for worker in reversed(self._workers):
            self._idle.put(worker)

    def video(
        self,
        path: str | os.PathLike[str],
        frames: FrameOptions = DEFAULT_FRAMES,
        start: float | None = None,
        end: float | None = None,
        stream: int | None = None,
        pixels: PixelOptions | None = None,
    ) -> Clip:
        """`decode.decode_video` in a worker."""
        if not self._workers:
            return decode_video(path, frames, self.limits, start, end, stream, pixels)
        return self._ask("video", path, pixels, frames=asdict(frames), start=start, end=end, stream=stream)

    def image(self, path: str | os.PathLike[str], pixels: PixelOptions | None = None) -> Clip:
        """`decode.decode_image` in a worker."""
        if not self._workers:
            return decode_image(path, self.limits, pixels)
        return self._ask("image", path, pixels)

    def measure_video(
        self,
        path: str | os.PathLike[str],
        frames: FrameOptions = DEFAULT_FRAMES,
        start: float | None = None,
        end: float | None = None,
        most_decoded: int | None = None,
    ) -> Measured:
        """`measure.measure_video` in a worker."""
        if not self._workers:
            return measure_video(path, frames, self.limits, start, end, most_decoded)
        span = {"start": start, "end": end}
        found = self._ask("measure_video", path, None, frames=asdict(frames), **span, most_decoded=most_decoded)
        return Measured(**{**found, "times": tuple(found["times"])})

    def measure_image(self, path: str | os.PathLike[str]) -> Measured:
        """`measure.measure_image` in a worker."""
        if not self._workers:
            return measure_image(path, self.limits)
        found = self._ask("measure_image", path, None)
        return Measured(**{**found, "times": ()})

    def describe(
        self,
        path: str | os.PathLike[str],
        frames: FrameOptions = DEFAULT_FRAMES,
        pixels: PixelOptions = DEFAULT_PIXELS,
        start: float | None = None,
        end: float | None = None,
        stream: int | None = None,
    ) -> dict[str, Any]:
        """`describe.describe` in a worker."""
        if not self._workers:
            return describe(path, frames, pixels, self.limits, start, end, stream)
        return self._ask("describe", path, pixels, frames=asdict(frames), start=start, end=end, stream=stream)

    def close(self) -> None:
        """End all processes; a call in flight in another thread fails."""
        self._closed = True
        for worker in self._workers:
            worker.stop()

    def __enter__(self) -> "Decoder":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, kind: str, path: str | os.PathLike[str], pixels: PixelOptions | None, **rest: Any) -> Any:
        if self._closed:
            raise ClosedDecoderError("the Decoder is closed")
        request = {"kind": kind, "path": os.fspath(path), "limits": asdict(self.limits), **rest}
        if not kind.startswith("measure"):
            request["pixels"] = asdict(pixels) if pixels else None
        worker = self._idle.get()
        try:
            return worker.ask(request)
        finally:
            self._idle.put(worker)
