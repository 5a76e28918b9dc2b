"""The program of a decoding process: answers one request after another until the other end closes."""

import signal
import socket

from jvlmm.errors import VideoError
from jvlmm.video.budget import PixelOptions
from jvlmm.video.clip import Clip
from jvlmm.video.decode import decode_image, decode_video
from jvlmm.video.limits import Limits
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
            signal.setitimer(signal.ITIMER_REAL, 2 * request["limits"]["deadline_s"] + 1)
            try:
                clip = answer(request)
            except VideoError as error:
                send(connection, {"error": str(error)})
            else:
                send_clip(connection, clip)
            signal.setitimer(signal.ITIMER_REAL, 0)


def answer(request: dict) -> Clip:
    """Decode what a request of `workers.Decoder` asks for."""
    limits = Limits(**request["limits"])
    pixels = PixelOptions(**request["pixels"]) if request["pixels"] else None
    if request["kind"] == "image":
        return decode_image(request["path"], limits, pixels)
    frames = FrameOptions(**request["frames"])
    return decode_video(request["path"], frames, limits, request["start"], request["end"], request["stream"], pixels)
