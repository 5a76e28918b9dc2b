"""Opening a media file, choosing its video stream, and turning every failure into one VideoError line."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
from av.stream import Disposition

from jvlmm.errors import VideoError
from jvlmm.video.content import refuse_other_content
from jvlmm.video.limits import Limits

# The containers that FFmpeg may open. Formats that make it read other files (playlists, image sequences), devices,
# and text that is drawn (tty, subtitles) are left out on purpose.
FORMATS = (
    "mov",  # with mp4, m4v, 3gp
    "matroska",  # with webm
    *("avi", "mpegts", "mpeg", "flv", "asf", "ogg", "mxf", "nut", "ivf", "gif", "apng"),
    *("h264", "hevc", "av1", "obu", "m4v", "mpegvideo"),  # bare streams
)
INPUT_OPTIONS = {"format_whitelist": ",".join(FORMATS), "protocol_whitelist": "file"}


def one_line(error: BaseException) -> str:
    """The message of an error from a library, on one line."""
    message = getattr(error, "strerror", None) or str(error)
    return " ".join(message.split()) or type(error).__name__


@contextmanager
def named(path: str | os.PathLike[str]) -> Iterator[None]:
    """Say which file an error is about: every failure inside becomes `VideoError("PATH: reason; remedy")`."""
    try:
        yield
    except VideoError as error:
        message = str(error)
        raise VideoError(message if message.startswith(f"{path}: ") else f"{path}: {message}") from None
    except MemoryError as error:  # FFmpeg's own, too
        raise VideoError(
            f"{path}: needs more memory than one file may take; check or re-encode it, take fewer or smaller frames "
            "or raise limits.max_memory"
        ) from error
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise VideoError(f"{path}: cannot be decoded ({one_line(error)}); check the file or re-encode it") from error


def check_file(path: str | os.PathLike[str]) -> Path:
    """The path of an existing regular file; VideoError for anything else, before anything could block on it."""
    path = Path(path)
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise VideoError("no such file; check the path") from None
    except (OSError, ValueError) as error:
        raise VideoError(f"cannot be read ({getattr(error, 'strerror', None) or error}); check the path") from None
    if stat.S_ISDIR(mode):
        raise VideoError("is a directory; give a video or image file")
    if not stat.S_ISREG(mode):
        raise VideoError("is not a regular file; copy its contents into a file first")
    if path.stat().st_size == 0:
        raise VideoError("is empty; fetch the file again")
    return path


@contextmanager
def open_container(path: str | os.PathLike[str]) -> Iterator[av.container.InputContainer]:
    """Open a media file of one of `FORMATS` for reading; VideoError where it is none. No other file is read for it."""
    file = check_file(path)
    refuse_other_content(file)
    try:
        # The file: protocol keeps FFmpeg from reading a name such as "http:x" or "concat:a|b" as anything but a file.
        container = av.open(f"file:{file}", options=INPUT_OPTIONS, metadata_errors="replace")
    except av.error.ArgumentError:
        raise VideoError("is no readable video (of no format that is read); convert it to MP4") from None
    except av.error.FFmpegError as error:
        if isinstance(error, MemoryError):
            raise
        reason = error.strerror or "unknown format"
        raise VideoError(f"is no readable video ({reason}); check the file or re-encode it") from None
    with container:
        yield container


def video_streams(container: av.container.InputContainer) -> list[av.VideoStream]:
    """Streams of moving pictures; the cover pictures of audio files are left out."""
    return [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]


def open_stream(container: av.container.InputContainer, limits: Limits, index: int | None = None) -> av.VideoStream:
    """`choose_stream`, ready to decode on one thread; VideoError where its frames are larger than `limits`."""
    stream = choose_stream(container, index)
    context = stream.codec_context
    if context is None:
        raise VideoError(f"stream {stream.index} has an unknown codec; re-encode it, for example to H.264")
    limits.check_size(context.width, context.height)
    if stream.frames > container.size > 0:
        raise VideoError(f"claims {stream.frames} frames in {container.size} bytes; check the file or re-encode it")
    context.thread_count = 1  # many files at once beat many threads on one
    return stream


def choose_stream(container: av.container.InputContainer, index: int | None = None) -> av.VideoStream:
    """The stream numbered `index` in the file, or the best one as FFmpeg ranks them; VideoError where there is none."""
    streams = {stream.index: stream for stream in video_streams(container)}
    if not streams:
        kinds = sorted({stream.type for stream in container.streams})
        raise VideoError(f"has no video stream (only {', '.join(kinds) or 'nothing'}); give a file with pictures")
    if index is None:
        best = container.streams.best("video")
        return streams.get(best.index if best is not None else -1, next(iter(streams.values())))
    if index not in streams:
        raise VideoError(f"stream {index} is no video stream; choose one of {', '.join(map(str, streams))}")
    return streams[index]
