"""What one device needs of a program, by arithmetic: for devices whose compiler is not at hand."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax

from jvlmm.sharding.rules import mesh_axes


@dataclass(frozen=True)
class Estimate:
    """Bytes of one device. `arguments` follow from shapes and shardings; the temporaries are counted by formulas."""

    parameters: int
    inputs: int  # the batch, or the state of decoding with its cache
    optimizer: int = 0
    gradients: int = 0
    activations: int = 0  # kept from the forward to the backward pass, or from layer to layer
    working: int = 0  # the most that exists for a moment only: of a layer, the head, or the tower
    host: int = 0  # kept in the memory of the host instead of its own
    results: int = 0  # that do not take the place of donated arguments
    collectives: Mapping[str, int] = field(default_factory=dict)  # received from other devices, by kind of operation

    @property
    def arguments(self) -> int:
        return self.parameters + self.optimizer + self.inputs

    @property
    def temporaries(self) -> int:
        return self.gradients + self.activations + self.working

    @property
    def peak(self) -> int:
        return self.arguments + self.temporaries + self.results


def device_size(leaf: Any) -> int:
    """Elements a device holds of an array, or of a ShapeDtypeStruct, which may have a sharding on any mesh."""
    sharding = getattr(leaf, "sharding", None)
    return math.prod(leaf.shape if sharding is None else sharding.shard_shape(leaf.shape))


def device_bytes(tree: Any) -> int:
    """Bytes a device holds of the arrays of a tree; see `device_size`."""
    return sum(device_size(leaf) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def gathered_size(tree: Any, axes: tuple[str, ...]) -> int:
    """Elements a device meets of the arrays of a tree when they are gathered over these mesh axes."""

    def of(leaf: Any) -> int:
        split = leaf.sharding.mesh.shape
        return device_size(leaf) * math.prod(split[axis] for axis in mesh_axes(leaf.sharding.spec) if axis in axes)

    return sum(map(of, jax.tree.leaves(tree)))
