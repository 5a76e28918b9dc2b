"""The device mesh: data, fsdp, tensor and context axes over all devices."""

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields

import jax
from jax.sharding import AxisType, Mesh

from jvlmm.errors import ConfigError


@dataclass(frozen=True)
class MeshOptions:
    """Devices along each mesh axis; at most one may be -1, which takes the devices the others leave.

    `data` replicates parameters and splits the batch, `fsdp` splits both, `tensor` splits heads, MLPs and vocabulary,
    `context` splits sequences.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    context: int = 1

    def __post_init__(self):
        for field in fields(self):
            size = getattr(self, field.name)
            if size < 1 and size != -1:
                raise ConfigError(f"mesh axis {field.name}={size}: use a positive number, or -1 for the rest")
        if astuple(self).count(-1) > 1:
            raise ConfigError(f"{self}: only one mesh axis may be -1; give a number for the others")


MESH_AXES = tuple(field.name for field in fields(MeshOptions))


def make_mesh(options: MeshOptions, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Mesh with the axes of MESH_AXES over `devices` (all devices by default), ordered for locality.

    Raises ConfigError where the axes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    shape = _mesh_shape(options, len(devices))
    return jax.make_mesh(shape, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES), devices=devices)


def _mesh_shape(options: MeshOptions, count: int) -> tuple[int, ...]:
    sizes = astuple(options)
    fixed = math.prod(size for size in sizes if size != -1)
    if -1 in sizes and count % fixed == 0:
        return tuple(count // fixed if size == -1 else size for size in sizes)
    if fixed != count or -1 in sizes:
        asked = ", ".join(f"{name}={size}" for name, size in zip(MESH_AXES, sizes, strict=True))
        remedy = "their product must equal it" if -1 not in sizes else f"the fixed axes ({fixed}) must divide it"
        raise ConfigError(f"mesh {asked} does not fit {count} device(s): {remedy}; one axis may be -1 for the rest")
    return sizes
