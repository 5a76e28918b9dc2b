"""One table from the logical axes arrays are described with to the mesh axes they are split over."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jvlmm.errors import ConfigError

MeshAxes = tuple[str, ...]  # () replicates


@dataclass(frozen=True)
class ShardingRules:
    """Logical axis -> mesh axes. The defaults are FSDP with Megatron-style tensor parallelism.

    An override such as `rules.kv_heads=` (empty) replicates an axis that the mesh does not divide.
    """

    # Parameters of the decoder; the KV cache splits by "batch" and "kv_heads".
    vocab: MeshAxes = ("tensor",)
    embed: MeshAxes = ("fsdp",)
    heads: MeshAxes = ("tensor",)
    kv_heads: MeshAxes = ("tensor",)
    head_dim: MeshAxes = ()
    mlp: MeshAxes = ("tensor",)
    layers: MeshAxes = ()
    # Parameters of the vision tower and the merger.
    patch: MeshAxes = ()
    vision_embed: MeshAxes = ("fsdp",)
    qkv: MeshAxes = ()
    vision_heads: MeshAxes = ("tensor",)
    vision_head_dim: MeshAxes = ()
    vision_mlp: MeshAxes = ("tensor",)
    vision_merged: MeshAxes = ("fsdp",)
    # Activations: rows of batches, tokens of a row; their width is whole.
    batch: MeshAxes = ("data", "fsdp")
    length: MeshAxes = ("context",)
    media: MeshAxes = ("data", "fsdp", "context")  # shards of the tower's patches


def partition_spec(rules: ShardingRules, axes: Sequence[str | None]) -> PartitionSpec:
    """PartitionSpec of an array whose dimensions carry these logical axes (None: not split).

    Raises ConfigError for an unknown logical axis, and where two axes of the array would share a mesh axis.
    """
    owner: dict[str, str] = {}
    entries = []
    for axis in axes:
        names = () if axis is None else _mesh_axes(rules, axis)
        for name in names:
            if name in owner:
                raise ConfigError(
                    f"sharding rules: axes {owner[name]!r} and {axis!r} of an array {tuple(axes)} both map to "
                    f"mesh axis {name!r}; map one of them elsewhere or to nothing"
                )
            owner[name] = axis
        entries.append(names[0] if len(names) == 1 else names or None)
    return PartitionSpec(*entries)


def named_shardings(mesh: Mesh, rules: ShardingRules, logical_tree: Any, shapes: Any = None) -> Any:
    """NamedSharding for every leaf of `logical_tree`, whose leaves are tuples of logical axis names.

    With `shapes`, the same tree of arrays or ShapeDtypeStructs, a dimension that its mesh axes do not divide is a
    ConfigError that names the array, as are unknown axes and collisions.
    """
    paths, structure = jax.tree_util.tree_flatten_with_path(logical_tree, is_leaf=_is_axes)
    leaves = [None] * len(paths) if shapes is None else structure.flatten_up_to(shapes)
    return structure.unflatten(
        _checked(mesh, rules, jax.tree_util.keystr(path, simple=True, separator="."), axes, leaf)
        for (path, axes), leaf in zip(paths, leaves, strict=True)
    )


def batch_sharding(mesh: Mesh, rules: ShardingRules, axis: str = "batch") -> NamedSharding:
    """Sharding of any array whose first dimension is the logical `axis`; the others are whole."""
    return _checked(mesh, rules, "batch", (axis,), None)


def constrain(x: jax.Array, rules: ShardingRules | None, axes: Sequence[str | None]) -> jax.Array:
    """`x` laid out by the logical axes of its dimensions on the mesh in use (`jax.set_mesh`).

    A dimension that its mesh axes do not divide stays whole; without a mesh or rules `x` is returned as it is.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if rules is None or mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, fitting_spec(mesh, rules, axes, x.shape)))


def constrained(tree: Any, rules: ShardingRules | None, axes: Any) -> Any:
    """Arrays laid out as by `constrain`; `axes` is a tree like theirs, of tuples."""
    return tree if rules is None else jax.tree.map(lambda x, of: constrain(x, rules, of), tree, axes)


def row_axes(x: Any) -> tuple[str | None, ...]:
    """Logical axes of an array whose rows are split, and nothing else of it; of a number, none."""
    return ("batch", *(None,) * (x.ndim - 1)) if x.ndim else ()


def fitting_shardings(mesh: Mesh, rules: ShardingRules, axes: Any, shapes: Any) -> Any:
    """How arrays of these shapes lie after `constrained`."""
    of = lambda x, axes: NamedSharding(mesh, fitting_spec(mesh, rules, axes, x.shape))  # noqa: E731
    return jax.tree.map(of, shapes, axes)


def fitting_spec(mesh: Mesh, rules: ShardingRules, axes: Sequence[str | None], shape: Sequence[int]) -> PartitionSpec:
    """`partition_spec` of an array of this shape; a dimension that its mesh axes do not divide stays whole."""
    entries = partition_spec(rules, axes)
    return PartitionSpec(*(e if n % split_count(mesh, e) == 0 else None for n, e in zip(shape, entries, strict=True)))


def split_count(mesh: Mesh, entry: str | MeshAxes | None) -> int:
    """Devices along an entry of a PartitionSpec."""
    return math.prod(mesh.shape[name] for name in mesh_axes((entry,)))


def mesh_axes(spec: PartitionSpec | tuple[str | MeshAxes | None, ...]) -> MeshAxes:
    """The mesh axes the entries of a PartitionSpec name."""
    return tuple(name for entry in spec for name in ((entry,) if isinstance(entry, str) else entry or ()))


def laid_out(tree: Any, shardings: Any) -> Any:
    """ShapeDtypeStructs of the arrays of `tree` (or of others) that say how they lie; `shardings` is a tree like it."""
    place = lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)  # noqa: E731
    return jax.tree.map(place, tree, shardings)


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of an array every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def _is_axes(node: Any) -> bool:
    return type(node) is tuple and all(axis is None or isinstance(axis, str) for axis in node)


def _mesh_axes(rules: ShardingRules, axis: str) -> MeshAxes:
    known = [field.name for field in fields(rules)]
    if axis not in known:
        raise ConfigError(f"sharding rules have no logical axis {axis!r}; known: {', '.join(known)}")
    return getattr(rules, axis)


def _checked(mesh: Mesh, rules: ShardingRules, name: str, axes: Sequence[str | None], leaf: Any) -> NamedSharding:
    """The array's NamedSharding, once its mesh axes are known to exist and to divide its shape."""
    spec = partition_spec(rules, axes)
    for dimension, axis in enumerate(axes):
        split = 1
        for mesh_axis in () if axis is None else getattr(rules, axis):
            if mesh_axis not in mesh.shape:
                allowed = ", ".join(mesh.shape)
                raise ConfigError(f"sharding rule {axis}={mesh_axis}: the mesh has no such axis; allowed: {allowed}")
            split *= mesh.shape[mesh_axis]
        if leaf is not None and leaf.shape[dimension] % split:
            raise ConfigError(
                f"{name}: axis {axis!r} of size {leaf.shape[dimension]} does not divide over {split} devices "
                f"({', '.join(getattr(rules, axis))}); use a smaller mesh axis or the override rules.{axis}="
            )
    return NamedSharding(mesh, spec)
