"""Whether a file is whole as far as its container tells, beyond what FFmpeg reports."""

from pathlib import Path

import av

from jvlmm.video.gif import check_gif
from jvlmm.video.matroska import check_matroska
from jvlmm.video.transport_stream import check_transport_stream


def check_structure(file: Path, container: av.container.InputContainer, stream: av.VideoStream) -> None:
    """Raise VideoError where the container has a hole that FFmpeg reads over without an error."""
    name = container.format.name
    if name == "gif":
        check_gif(file)
    elif name.startswith("matroska"):
        check_matroska(file)
    elif name == "mpegts":
        check_transport_stream(file, stream.id)
