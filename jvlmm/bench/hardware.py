"""What a measurement ran on."""

import platform
from pathlib import Path


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
