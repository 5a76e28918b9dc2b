"""Whether a GIF is whole: FFmpeg reads a damaged or cut one as a shorter or paler one, without a word (GIF89a)."""

from functools import lru_cache
from pathlib import Path

import numpy as np

from jvlmm.errors import VideoError

EXTENSION, IMAGE, TRAILER = 0x21, 0x2C, 0x3B
LARGEST_TABLE = 4096  # entries of the code table: codes have at most 12 bits
REMEDY = "fetch the file again or re-encode it"


class _CutError(Exception):
    """The file ends within a block."""


class _Blocks:
    """Reads a GIF from its start."""

    def __init__(self, data: bytes):
        self.data, self.at = data, 0

    def take(self, count: int) -> bytes:
        """The next `count` bytes; _CutError where there are fewer."""
        if self.at + count > len(self.data):
            raise _CutError
        self.at += count
        return self.data[self.at - count : self.at]

    def color_table(self, flags: int) -> None:
        """Pass over the colour table that flags announce."""
        if flags & 0x80:
            self.take(3 << ((flags & 7) + 1))

    def sub_blocks(self) -> bytes:
        """The contents of sub-blocks up to their terminator."""
        parts = []
        while size := self.take(1)[0]:
            parts.append(self.take(size))
        return b"".join(parts)


def check_gif(file: Path) -> int:
    """Count the pictures of a GIF, all of whose blocks and pixels are there; bytes after its trailer are ignored.

    Raises VideoError where the file ends early, a block is none of the format, or a picture has other than its pixels.
    """
    blocks, images = _Blocks(file.read_bytes()), 0
    try:
        screen = blocks.take(13)  # the signature, then the size, flags, background and aspect of the screen
        blocks.color_table(screen[10])
        while True:
            start = blocks.at
            if start == len(blocks.data):
                raise VideoError(f"ends without the trailer of a GIF, frames may be missing; {REMEDY}")
            label = blocks.take(1)[0]
            if label == TRAILER:
                return images
            if label == EXTENSION:
                blocks.take(1)
                blocks.sub_blocks()
            elif label == IMAGE:
                _check_image(blocks, images)
                images += 1
            else:
                raise VideoError(f"is damaged: no block of a GIF begins at byte {start}; {REMEDY}")
    except _CutError:
        raise VideoError(f"is cut short: a GIF that ends within a block, after {images} frames; {REMEDY}") from None


def _check_image(blocks: _Blocks, number: int) -> None:
    descriptor = blocks.take(9)
    width, height = int.from_bytes(descriptor[4:6], "little"), int.from_bytes(descriptor[6:8], "little")
    blocks.color_table(descriptor[8])
    code_size = blocks.take(1)[0]
    data = blocks.sub_blocks()
    pixels = lzw_length(data, code_size) if 1 <= code_size <= 8 else None
    if pixels is None:
        raise VideoError(f"is damaged: frame {number} holds codes that mean nothing; {REMEDY}")
    if pixels != width * height:
        raise VideoError(f"is damaged: frame {number} holds {pixels} of {width * height} pixels; {REMEDY}")


def lzw_length(data: bytes, code_size: int) -> int | None:
    """Number of pixels that LZW data of a GIF stands for; None where a code refers to none before it.

    Between two clear codes the width of each code follows from its place, so that a run is unpacked at once, and the
    length of each code's string is its distance from a single pixel along the codes it was built on.
    """
    clear = 1 << code_size
    padded = np.frombuffer(data + b"\0\0", np.uint8).astype(np.int32)
    bits, position, total = 8 * len(data), 0, 0
    while True:
        codes, position, ended = _run_of_codes(padded, bits, position, clear)
        if len(codes):
            limits = np.minimum(clear + 1 + np.arange(len(codes)), LARGEST_TABLE - 1)
            if codes[0] >= clear or np.any(codes > limits):
                return None
            total += int(_string_lengths(codes, clear)[codes].sum())
        if ended:
            return total


def _run_of_codes(padded: np.ndarray, bits: int, position: int, clear: int) -> tuple[np.ndarray, int, bool]:
    """Codes up to the next clear code, the bit after it, and whether the data ends there."""
    most = LARGEST_TABLE
    while True:
        widths, offsets = _widths(clear, most)
        starts = position + offsets
        inside = starts + widths <= bits
        starts, widths = starts[inside], widths[inside]
        at = starts >> 3
        words = padded[at] | padded[at + 1] << 8 | padded[np.minimum(at + 2, len(padded) - 1)] << 16
        codes = (words >> (starts & 7)) & ((1 << widths) - 1)
        stops = np.flatnonzero((codes == clear) | (codes == clear + 1))
        if len(stops):
            stop = int(stops[0])
            return codes[:stop], int(starts[stop] + widths[stop]), bool(codes[stop] == clear + 1)
        if len(codes) < most:
            return codes, bits, True
        most *= 2


@lru_cache(maxsize=64)
def _widths(clear: int, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Bits of each of so many codes after a clear code, and the bits before each: int32 [most] both."""
    entries = clear + 2 + np.maximum(np.arange(most) - 1, 0)  # of the table before each code
    widths = np.clip(np.ceil(np.log2(entries + 1)).astype(np.int32), clear.bit_length(), 12)
    return widths, np.cumsum(widths, dtype=np.int32) - widths


def _string_lengths(codes: np.ndarray, clear: int) -> np.ndarray:
    """int64 [table]: pixels each entry of the table stands for, after a run of valid codes."""
    made = codes[: LARGEST_TABLE - clear - 2]  # entry clear + 2 + i extends the string of codes[i] by one pixel
    before = np.concatenate([np.arange(clear), [0, 0], made])
    lengths = (np.arange(len(before)) >= clear + 2).astype(np.int64)
    while np.any(before >= clear):
        lengths, before = lengths + lengths[before], before[before]
    return lengths + 1
