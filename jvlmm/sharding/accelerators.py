"""Accelerators as JAX counts them: what one device computes, keeps, and moves a second."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Accelerator:
    """Data-sheet peaks of one JAX device. Of TPU v4 and TPU7x that is one of a chip's two cores."""

    device_kind: str  # as JAX names it, or a part of it
    bfloat16_flops: float  # FLOP/s of dense products
    memory_bytes_per_second: float
    memory_bytes: float  # what a program may use: on TPU the compiler's own limit, on GPU the data sheet's
    link_bytes_per_second: float  # received from other devices of the slice or node


_GIB = 2**30

# TPU peaks: cloud.google.com/tpu/docs, pages v4, v5e, v5p, v6e, tpu7x ("per chip", halved where a device is a core; of
# the bidirectional interconnect one direction). TPU memory: what the compiler of libtpu 0.0.42 says is available.
# GPU: NVIDIA's data sheets of the SXM parts (L4: PCIe), dense figures; NVLink in one direction.
ACCELERATORS = {
    "v4": Accelerator("TPU v4", 275e12 / 2, 1228e9 / 2, 15.25 * _GIB, 300e9 / 2),
    "v5e": Accelerator("TPU v5 lite", 197e12, 819e9, 15.75 * _GIB, 200e9),
    "v5p": Accelerator("TPU v5", 459e12, 2765e9, 95.74 * _GIB, 600e9),
    "v6e": Accelerator("TPU v6 lite", 918e12, 1640e9, 31.25 * _GIB, 400e9),
    "tpu7x": Accelerator("TPU7x", 2307e12 / 2, 7380e9 / 2, 94.75 * _GIB, 600e9 / 2),
    "a100": Accelerator("A100", 312e12, 2.04e12, 80e9, 300e9),
    "l4": Accelerator("L4", 121e12, 0.30e12, 24e9, 32e9),
    "h100": Accelerator("H100", 989e12, 3.35e12, 80e9, 450e9),
    "h200": Accelerator("H200", 989e12, 4.8e12, 141e9, 450e9),
    "b200": Accelerator("B200", 2250e12, 8.0e12, 180e9, 900e9),
}


def accelerator_of(device_kind: str) -> Accelerator | None:
    """The accelerator of a JAX `device_kind`, None where it is not in the table."""
    fitting = [a for a in ACCELERATORS.values() if a.device_kind in device_kind]
    return max(fitting, key=lambda a: len(a.device_kind), default=None)
