"""What a measurement ran on, and the peaks of accelerators from their data sheets."""

import platform
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Peak:
    """Of one chip, for dense products."""

    bfloat16_flops: float  # FLOP/s
    bytes_per_second: float  # of its memory


PEAKS = {  # part of the device kind as JAX names it, the more specific first
    "H200": Peak(989e12, 4.8e12),
    "H100": Peak(989e12, 3.35e12),
    "B200": Peak(2250e12, 8.0e12),
    "A100": Peak(312e12, 2.04e12),
    "L4": Peak(121e12, 0.30e12),
    "TPU v4": Peak(275e12, 1.23e12),
    "TPU v5 lite": Peak(197e12, 0.82e12),
    "TPU v5": Peak(459e12, 2.77e12),
    "TPU v6 lite": Peak(918e12, 1.64e12),
    "TPU7x": Peak(2307e12, 7.38e12),
}


def peak_of(device_kind: str) -> Peak | None:
    """The peak of an accelerator, None where it is not in the table."""
    return next((peak for name, peak in PEAKS.items() if name in device_kind), None)


def describe(threads: int, device_kind: str | None = None) -> str:
    """One line: the accelerator, or the processor and the threads used of it."""
    if device_kind not in (None, "cpu"):
        return device_kind
    return f"{_processor()}, {threads} threads"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
