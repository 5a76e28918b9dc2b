"""A function of single tokens, tile by tile, with its weights gathered once."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec

from jvlmm.sharding.rules import ShardingRules, fitting_spec, mesh_axes, partition_spec

Apply = Callable[[Any, jax.Array], jax.Array]  # (weights, x [tokens, D]) -> [tokens, D]


def over_tiles(
    apply: Apply, weights: Any, axes: Any, x: jax.Array, tile: int, rules: ShardingRules | None, dtype: Any
) -> jax.Array:
    """`apply` of x [B, L, D] in tiles of `tile` tokens of a device; what it keeps inside is computed again backwards.

    On a mesh every device gathers the weights once for all its tiles, in `dtype`, and adds its gradients up before
    they are scattered once. How weights are split over other mesh axes than those of the batch is left to the compiler.

    Args:
        weights: a tree of arrays.
        axes: tuples of the logical axes of their dimensions, a tree like it.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if rules is None or mesh.empty:
        return _tiled(apply, _cast(weights, dtype), x, tile)
    of_tokens = fitting_spec(mesh, rules, ("batch", "length", None), x.shape)
    manual = {*mesh_axes(of_tokens), *mesh_axes(partition_spec(rules, ("embed",)))}
    if not manual:
        return _tiled(apply, _cast(weights, dtype), x, tile)
    leaves, structure = jax.tree.flatten(weights)
    split = [_restricted(partition_spec(rules, names), manual) for names in structure.flatten_up_to(axes)]

    def local(leaves, x):
        whole = [_gathered(leaf, spec) for leaf, spec in zip(_cast(leaves, dtype), split, strict=True)]
        return _tiled(apply, structure.unflatten(whole), x, tile)

    specs = (split, of_tokens)
    run = jax.shard_map(local, in_specs=specs, out_specs=of_tokens, axis_names=manual, check_vma=False)
    return run(leaves, x)


def _tiled(apply, weights, x, tile):
    tokens = x.size // x.shape[-1]
    if tokens % tile or tokens == tile:
        return jax.checkpoint(apply)(weights, x)
    tiles = x.reshape(tokens // tile, tile, x.shape[-1])
    one = jax.checkpoint(lambda x: apply(weights, x), prevent_cse=False)
    return jax.lax.map(one, tiles).reshape(x.shape)


def _cast(tree, dtype):
    return jax.tree.map(lambda leaf: leaf.astype(dtype), tree)


def _restricted(spec, names):
    """The entries of a PartitionSpec that are among these mesh axes."""
    kept = (tuple(name for name in mesh_axes((entry,)) if name in names) for entry in spec)
    return PartitionSpec(*(entry or None for entry in kept))


def _gathered(x, spec):
    for axis, entry in enumerate(spec):
        if entry:
            x = jax.lax.all_gather(x, entry, axis=axis, tiled=True)
    return x
