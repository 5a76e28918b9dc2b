"""Whether an MPEG transport stream is whole: its packets follow one another and are numbered (ISO/IEC 13818-1, 2.4.3).

A stream may begin anywhere, as a recording does; what is lost after its beginning shows in the numbers.
"""

from pathlib import Path

import numpy as np

from jvlmm.errors import VideoError

SYNC = 0x47
SIZES = (188, 192, 204)  # bytes of a packet: plain, with a time before it, with a parity after it
PIECE = 1 << 16  # packets looked at together
REMEDY = "fetch the file again or re-encode it"


def check_transport_stream(file: Path, pid: int) -> None:
    """Raise VideoError where packets are no packets, or where some of the stream numbered `pid` are missing."""
    data = np.memmap(file, np.uint8, mode="r")
    start, size = _first_packet(data)
    count, rest = divmod(len(data) - start, size)
    if rest >= 188:  # the last of a kind with something after each packet
        count, rest = count + 1, 0
    last, repeated = -1, False
    for first in range(0, count, PIECE):
        number = min(PIECE, count - first)
        # Only the four bytes of each header: sync, flags and PID, adaptation and counter.
        places = start + (first + np.arange(number, dtype=np.int64)) * size
        sync, high, low, control = (data[places + offset] for offset in range(4))
        wrong = np.flatnonzero((sync != SYNC) | (high & 0x80 != 0))
        if len(wrong):
            raise VideoError(f"is damaged: no packet begins at byte {places[wrong[0]]}; {REMEDY}")
        pids = (high.astype(int) & 0x1F) << 8 | low
        for place in np.flatnonzero((pids == pid) & (control & 0x10 != 0)):  # packets without content are not numbered
            counter = int(control[place]) & 15
            told = control[place] & 0x20 and data[places[place] + 4] and data[places[place] + 5] & 0x80
            if last >= 0 and not told and counter != (last + 1) % 16 and (counter != last or repeated):
                raise VideoError(f"is damaged: packets are missing before byte {places[place]}; {REMEDY}")
            last, repeated = counter, counter == last
    if rest:
        raise VideoError(f"is cut short: its last packet has {rest} of {size} bytes; {REMEDY}")


def _first_packet(data: np.ndarray) -> tuple[int, int]:
    """The byte at which packets begin, and their size; VideoError where there are none."""
    for size in SIZES:
        for start in range(min(size, len(data))):
            if np.all(data[start : start + 5 * size : size] == SYNC):
                return start, size
    raise VideoError(f"is damaged: it has no packets of a transport stream; {REMEDY}")
