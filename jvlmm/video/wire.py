"""Messages between the process that trains and the processes that decode: JSON and raw pixels, never objects."""

import json
import socket
import struct
import time
from typing import Any

import numpy as np

from jvlmm.video.clip import Clip

LENGTH = struct.Struct("!Q")


def send(connection: socket.socket, message: dict[str, Any], payload: np.ndarray | None = None) -> None:
    """Send a JSON object and, where given, the bytes of a C-contiguous array whose shape the message tells."""
    text = json.dumps(message).encode()
    connection.sendall(LENGTH.pack(len(text)) + text)
    if payload is not None:
        connection.sendall(memoryview(payload).cast("B"))


def receive(connection: socket.socket, deadline: float | None = None) -> dict[str, Any]:
    """Receive a JSON object. `deadline` is in time.monotonic() seconds (TimeoutError); EOFError at a closed end."""
    size = bytearray(LENGTH.size)
    receive_into(connection, memoryview(size), deadline)
    text = bytearray(LENGTH.unpack(size)[0])
    receive_into(connection, memoryview(text), deadline)
    return json.loads(text)


def receive_into(connection: socket.socket, view: memoryview, deadline: float | None = None) -> None:
    """Fill a byte view; errors as `receive`."""
    while len(view):
        if deadline is not None:
            connection.settimeout(max(deadline - time.monotonic(), 1e-3))
        count = connection.recv_into(view)
        if count == 0:
            raise EOFError
        view = view[count:]


def send_clip(connection: socket.socket, clip: Clip) -> None:
    """Send everything a clip holds."""
    message = {
        "shape": clip.frames.shape,
        "times": clip.times.tolist(),
        "indices": clip.indices.tolist(),
        "duration": clip.duration,
        "fps": clip.fps,
        "file_size": clip.file_size,
    }
    send(connection, message, np.ascontiguousarray(clip.frames))


def receive_clip(connection: socket.socket, message: dict[str, Any], deadline: float | None = None) -> Clip:
    """The clip that `message` announces."""
    frames = np.empty(message["shape"], np.uint8)
    if frames.size:
        receive_into(connection, memoryview(frames).cast("B"), deadline)
    return Clip(
        frames,
        np.array(message["times"], np.float64),
        np.array(message["indices"], np.int64),
        message["duration"],
        message["fps"],
        tuple(message["file_size"]),
    )
