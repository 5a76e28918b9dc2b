"""Whether the elements of a Matroska or WebM file follow one another without a hole (RFC 8794, RFC 9559).

FFmpeg skips what it cannot read to the next cluster: a file with seconds missing plays, and its frames come at times
that their numbers do not tell.
"""

import zlib
from pathlib import Path
from typing import BinaryIO

from jvlmm.errors import VideoError

EBML, SEGMENT, CLUSTER = 0x1A45DFA3, 0x18538067, 0x1F43B675
VOID, CRC = 0xEC, 0xBF
# SeekHead, Info, Tracks, Cues, Attachments, Chapters, Tags
IN_SEGMENT = {0x114D9B74, 0x1549A966, 0x1654AE6B, 0x1C53BB6B, 0x1941A469, 0x1043A770, 0x1254C367, CLUSTER}
# Timestamp, SilentTracks, Position, PrevSize, SimpleBlock, BlockGroup, EncryptedBlock
IN_CLUSTER = {0xE7, 0x5854, 0xA7, 0xAB, 0xA3, 0xA0, 0xAF}
REMEDY = "fetch the file again or re-encode it"


def check_matroska(file: Path) -> None:
    """Raise VideoError where an element is none of the format, ends after the file, or differs from its checksum."""
    end = file.stat().st_size
    with file.open("rb") as stream:
        while stream.tell() < end:
            start = stream.tell()
            kind, size = _header(stream, end)
            if kind == SEGMENT:
                _check_segment(stream, stream.tell() + size if size is not None else None, end)
                return  # players ignore what follows
            if kind not in (EBML, VOID) or size is None:
                raise _damaged(start)
            _skip(stream, size, end)


def _check_segment(stream: BinaryIO, stop: int | None, end: int) -> None:
    if stop is not None and stop > end:
        raise VideoError(f"is cut short: {end} of {stop} bytes are there; {REMEDY}")
    within_cluster = False  # of unknown size, which the next element of the segment ends
    while stream.tell() < (end if stop is None else stop):
        start = stream.tell()
        kind, size = _header(stream, end)
        if kind in IN_SEGMENT or (kind in (VOID, CRC) and not within_cluster):
            within_cluster = kind == CLUSTER and size is None
            if within_cluster:
                continue
            if size is None:
                raise _damaged(start)
            content = stream.tell()
            _check_sum(stream, size, end)
            if kind == CLUSTER:
                _check_cluster(stream, content + size, end)
            else:
                _skip(stream, size, end)
        elif within_cluster and kind in (*IN_CLUSTER, VOID, CRC) and size is not None:
            _skip(stream, size, end)
        else:
            raise _damaged(start)


def _check_cluster(stream: BinaryIO, stop: int, end: int) -> None:
    while stream.tell() < stop:
        start = stream.tell()
        kind, size = _header(stream, end)
        if kind not in (*IN_CLUSTER, VOID, CRC) or size is None:
            raise _damaged(start)
        _skip(stream, size, end)
    if stream.tell() != stop:
        raise _damaged(stop)


def _check_sum(stream: BinaryIO, size: int, end: int) -> None:
    """Compare the content of an element with the CRC-32 at its beginning, if it has one; the position is kept."""
    start = stream.tell()
    head = stream.read(min(6, size))
    if head[:2] == b"\xbf\x84" and len(head) == 6:
        if start + size > end:
            raise VideoError(f"is cut short: {end} of {start + size} bytes are there; {REMEDY}")
        total, left = 0, size - 6
        while left:
            piece = stream.read(min(left, 1 << 20))
            total, left = zlib.crc32(piece, total), left - len(piece)
        if total != int.from_bytes(head[2:], "little"):
            raise VideoError(f"is damaged: bytes {start} to {start + size} differ from their checksum; {REMEDY}")
    stream.seek(start)


def _header(stream: BinaryIO, end: int) -> tuple[int, int | None]:
    """The identifier of the next element and the size of its content; None where that is unknown."""
    start = stream.tell()
    first = stream.read(1)
    length = 9 - first[0].bit_length() if first else 0
    if not 1 <= length <= 4:
        raise _damaged(start) if first else _cut(end)
    kind = int.from_bytes(first + stream.read(length - 1), "big")
    first = stream.read(1)
    if not first:
        raise _cut(end)
    length = 9 - first[0].bit_length()
    if length > 8:
        raise _damaged(start)
    rest = stream.read(length - 1)
    if len(rest) < length - 1:
        raise _cut(end)
    size = int.from_bytes(first + rest, "big") & ((1 << 7 * length) - 1)
    return kind, None if size == (1 << 7 * length) - 1 else size


def _skip(stream: BinaryIO, size: int, end: int) -> None:
    if stream.tell() + size > end:
        raise _cut(end)
    stream.seek(size, 1)


def _damaged(at: int) -> VideoError:
    return VideoError(f"is damaged: no element of Matroska begins at byte {at}; {REMEDY}")


def _cut(end: int) -> VideoError:
    return VideoError(f"is cut short: a Matroska element does not end by byte {end}; {REMEDY}")
