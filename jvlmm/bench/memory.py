"""The peak of this process's memory over a stretch of work (Linux)."""

import ctypes
import gc
from pathlib import Path


def reset_peak() -> None:
    """Give free heap back to the system, and begin the peak anew at what is in use (proc(5), clear_refs)."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """The largest resident set since `reset_peak`: libraries, weights, optimiser state and activations."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status holds no VmHWM; memory is measured on Linux only")
