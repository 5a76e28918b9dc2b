"""The program of a decoding process: answers one request after another until the other end closes."""

import resource
import signal
import socket
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from jvlmm.errors import VideoError
from jvlmm.video.budget import PixelOptions
from jvlmm.video.clip import Clip
from jvlmm.video.container import one_line
from jvlmm.video.decode import decode_image, decode_video
from jvlmm.video.describe import describe
from jvlmm.video.fitting import Measured
from jvlmm.video.limits import Limits
from jvlmm.video.measure import measure_image, measure_video
from jvlmm.video.sampling import FrameOptions
from jvlmm.video.wire import receive, send, send_clip


def serve(descriptor: int) -> None:
    """Serve requests from an inherited socket. The process ends itself should its parent die or forget it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with socket.socket(fileno=descriptor) as connection:
        send(connection, {"ready": True})
        while True:
            try:
                request = receive(connection)
            except (EOFError, OSError):
                return
            path = request["path"]
            confine(Limits(**request["limits"]))
            try:
                answer = FUNCTIONS[request.pop("kind")](**options(request))
            except VideoError as error:
                send(connection, {"error": str(error)})
            except Exception as error:  # one file must not cost the process, whatever a library raises
                reason = f"{type(error).__name__}: {one_line(error)}"
                send(connection, {"error": f"{path}: cannot be decoded ({reason}); check the file or re-encode it"})
            else:
                signal.setitimer(signal.ITIMER_PROF, 0)
                if isinstance(answer, Clip):
                    send_clip(connection, answer)
                else:
                    send(connection, {"record": asdict(answer) if isinstance(answer, Measured) else answer})
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)


def confine(limits: Limits) -> None:
    """Bound this process for one request: its memory, and by timers whose signals end it its time.

    Processor time counts towards the deadline, so that a busy host changes no outcome; the clock is for reads that
    never end, and for a parent that forgets the process.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    with suppress(ValueError, OSError):  # a smaller hard limit holds anyway
        resource.setrlimit(resource.RLIMIT_DATA, (limits.max_memory, hard))
    signal.setitimer(signal.ITIMER_PROF, limits.deadline_s)
    signal.setitimer(signal.ITIMER_REAL, 2 * limits.wall_deadline_s + 1)


def options(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of a request with their options as dataclasses again."""
    kinds = {"frames": FrameOptions, "limits": Limits, "pixels": PixelOptions}
    return {name: kinds[name](**value) if name in kinds and value else value for name, value in fields.items()}


FUNCTIONS = {
    "video": decode_video,
    "image": decode_image,
    "measure_video": measure_video,
    "measure_image": measure_image,
    "describe": describe,
}
