"""How fast a loop runs and how much of its time the device waits for data."""

import time
from collections.abc import Collection
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax

from jvlmm.sharding.accelerators import accelerator_of

_GIB = 2**30


class Meter:
    """Rates since the last reading.

    `data_wait` is the share of wall time in which the device had finished its work while the next batch
    was still being made: time spent on data behind a busy device costs nothing and is not counted.

    Of `devices`, those that work, come the FLOP/s that `mfu` is a share of, and the memory in use.
    """

    def __init__(self, devices: Collection[jax.Device] = ()):
        self._devices = devices
        self._peak_flops = peak_flops(devices)
        self._watcher = ThreadPoolExecutor(1, "device-watcher")
        self._finished: Future[float] | None = None
        self.reset()

    def reset(self) -> None:
        """Start a new window, so that evaluation and checkpoints count as neither work nor waiting."""
        self._start = time.perf_counter()
        self._waited = self._samples = self._flops = 0.0

    def watch(self, outputs: Any) -> None:
        """Note when the device finishes `outputs`."""
        self._finished = self._watcher.submit(_completion_time, outputs)

    def fetched(self, started: float) -> None:
        """A batch whose making began at `started` (perf_counter) is ready now."""
        now = time.perf_counter()
        if self._finished is None:
            self._waited += now - started
        elif self._finished.done():
            self._waited += max(0.0, now - max(started, self._finished.result()))

    def add(self, samples: int, flops: float) -> None:
        """Count work handed to the device."""
        self._samples += samples
        self._flops += flops

    def read(self, tokens: float, places: float = 0.0) -> dict[str, float]:
        """Rates of this window, during which `tokens` tokens were processed; starts the next one.

        `utilisation` is their share of the `places` in the batches' rows; the others held padding. `mfu` is the share
        of model FLOPs in what the devices could compute in bfloat16 (Chowdhery et al., arXiv:2204.02311), of devices
        whose peak is known; `hbm_peak_gib` the most memory that one of them has had in use since the process began, of
        devices that tell.
        """
        elapsed = max(time.perf_counter() - self._start, 1e-9)
        rates = {"samples_per_s": self._samples / elapsed, "data_wait": min(self._waited / elapsed, 1.0)}
        if tokens:
            rates["tokens_per_s"] = tokens / elapsed
        if places:
            rates["utilisation"] = tokens / places
        if self._flops:
            rates["model_flops_per_s"] = self._flops / elapsed
            if self._peak_flops:
                rates["mfu"] = self._flops / elapsed / self._peak_flops
        if memory := memory_peak(self._devices):
            rates["hbm_peak_gib"] = memory / _GIB
        self.reset()
        return rates

    def close(self) -> None:
        self._watcher.shutdown()


def peak_flops(devices: Collection[jax.Device]) -> float:
    """FLOP/s in bfloat16 of all devices together; 0 where that of one is not known."""
    accelerators = [accelerator_of(device.device_kind) for device in devices]
    return sum(a.bfloat16_flops for a in accelerators) if all(accelerators) else 0.0


def memory_peak(devices: Collection[jax.Device]) -> int:
    """Bytes, the most that one of this process's devices has had in use; 0 where none tells."""
    reports = [d.memory_stats() or {} for d in devices if d.process_index == jax.process_index()]
    return max((report.get("peak_bytes_in_use", 0) for report in reports), default=0)


def _completion_time(outputs: Any) -> float:
    jax.block_until_ready(outputs)
    return time.perf_counter()
