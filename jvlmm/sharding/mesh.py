"""The device mesh: data, fsdp, tensor and context axes over all devices."""

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields

import jax
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh

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
                raise ConfigError(f"mesh.{field.name}={size}: use a positive number, or -1 for the rest")
        if astuple(self).count(-1) > 1:
            raise ConfigError(f"{self}: only one mesh axis may be -1; give a number for the others")


MESH_AXES = tuple(field.name for field in fields(MeshOptions))


def make_mesh(options: MeshOptions, devices: Sequence[jax.Device] | int | None = None) -> Mesh | AbstractMesh:
    """Mesh with the axes of MESH_AXES over `devices` (all devices by default), ordered for locality.

    Of a number of devices, which may be anywhere, an AbstractMesh: shardings on it say what a device holds.
    TPU devices of several slices lie so that only `data`, and `fsdp` where that is not enough, goes between slices.
    Raises ConfigError where the axes do not multiply to the number of devices, or would have to go between slices.
    """
    types = (AxisType.Auto,) * len(MESH_AXES)
    if isinstance(devices, int):
        return AbstractMesh(_mesh_shape(options, devices), MESH_AXES, axis_types=types)
    devices = jax.devices() if devices is None else list(devices)
    shape = _mesh_shape(options, len(devices))
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    else:
        between = _shape_between_slices(shape, slices)
        within = tuple(size // count for size, count in zip(shape, between, strict=True))
        grid = mesh_utils.create_hybrid_device_mesh(within, between, devices, allow_split_physical_axes=True)
    return Mesh(grid, MESH_AXES, axis_types=types)


def _shape_between_slices(shape: tuple[int, ...], slices: int) -> tuple[int, ...]:
    data, fsdp = shape[:2]
    by_data = math.gcd(data, slices)
    by_fsdp = slices // by_data
    if fsdp % by_fsdp:
        raise ConfigError(
            f"mesh.data={data}, mesh.fsdp={fsdp} cannot go between {slices} slices; make mesh.data a multiple of "
            f"{slices}, or their product"
        )
    return (by_data, by_fsdp, *(1 for _ in shape[2:]))


def _mesh_shape(options: MeshOptions, count: int) -> tuple[int, ...]:
    sizes = astuple(options)
    fixed = math.prod(size for size in sizes if size != -1)
    if -1 in sizes and count % fixed == 0:
        return tuple(count // fixed if size == -1 else size for size in sizes)
    if fixed != count or -1 in sizes:
        asked = ", ".join(f"mesh.{name}={size}" for name, size in zip(MESH_AXES, sizes, strict=True))
        remedy = "their product must equal it" if -1 not in sizes else f"the fixed axes ({fixed}) must divide it"
        raise ConfigError(f"{asked} does not fit {count} device(s): {remedy}; one axis may be -1 for the rest")
    return sizes
