"""A gated MLP, or the like, beside its residual: tile by tile of tokens, part by part of its hidden units."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from jvlmm.sharding.rules import MeshAxes, ShardingRules, fitting_spec, mesh_axes, partition_spec, split_count

Update = Callable[[Any, jax.Array], jax.Array]  # (weights, x [tokens, D]) -> [tokens, D] of x's type


def add_in_tiles(
    update: Update,
    weights: Any,
    axes: Any,
    x: jax.Array,
    tile: int,
    parts: int = 1,
    rules: ShardingRules | None = None,
    dtype: Any = jnp.float32,
) -> jax.Array:
    """x + update(weights, x) of x [B, L, D], where a device has `tile` of its tokens in work at a time.

    The update must be a sum over hidden units, the axis "mlp" of its weights. These are cut into `parts`, one after the
    other: on a mesh every device gathers the weights of a part once for all its tiles, in `dtype`, adds their gradients
    up in float32, and scatters them once in `dtype`. How weights are split over other mesh axes than those of the batch
    is left to the compiler. The backward pass computes each tile again. A `tile` that does not divide a device's
    tokens, or `parts` that do not divide the hidden units, cut nothing.

    Args:
        weights: a tree of arrays.
        axes: tuples of the logical axes of their dimensions, a tree like it.
    """
    leaves, structure = jax.tree.flatten(weights)
    update_by = lambda leaves, x: update(structure.unflatten(leaves), x)  # noqa: E731
    names = structure.flatten_up_to(axes)
    mesh = jax.sharding.get_abstract_mesh()
    tokens, manual, groups = None, (), 1
    if rules is not None and not mesh.empty:
        tokens = fitting_spec(mesh, rules, ("batch", "length", None), x.shape)
        manual = mesh_axes((*tokens, *partition_spec(rules, ("embed",))))
        groups = _split_apart(mesh, rules, manual)
    specs = [_restricted(partition_spec(rules, axes), manual) if manual else PartitionSpec() for axes in names]
    parts = parts if all(n % (groups * parts) == 0 for n in _hidden_units(leaves, names)) else 1
    layout = _Layout(tuple(specs), tuple(_cut_axis(axes) for axes in names), parts, groups, dtype)

    def local(leaves, x):
        count = x.size // x.shape[-1]
        tiles = count // tile if count % tile == 0 else 1
        return _added(update_by, layout, leaves, x.reshape(tiles, count // tiles, x.shape[-1])).reshape(x.shape)

    if not manual:
        return local(leaves, x)
    return jax.shard_map(local, in_specs=(specs, tokens), out_specs=tokens, axis_names={*manual}, check_vma=False)(
        leaves, x
    )


@dataclass(frozen=True)
class _Layout:
    """How the weights lie, in the order of their list."""

    specs: tuple[PartitionSpec, ...]  # of the mesh axes that are gathered
    cut: tuple[int | None, ...]  # the axis of hidden units
    parts: int
    groups: int  # devices that share the hidden units; each has its share of every part
    dtype: Any

    def gathered(self, weights: Sequence[jax.Array], part: int) -> list[jax.Array]:
        """One part of the weights."""
        whole = []
        for x, spec, cut in zip(weights, self.specs, self.cut, strict=True):
            x = self._part(x, cut, part).astype(self.dtype)
            for axis, entry in enumerate(spec):
                x = jax.lax.all_gather(x, entry, axis=axis, tiled=True) if entry else x
            whole.append(x)
        return whole

    def scattered(self, gradients: Sequence[jax.Array | None]) -> list[jax.Array | None]:
        """Sums over devices of the gradients of one part, each device's share."""
        shares = []
        for x, spec in zip(gradients, self.specs, strict=True):
            for axis, entry in enumerate(spec):
                if entry and x is not None:
                    x = jax.lax.psum_scatter(x, entry, scatter_dimension=axis, tiled=True)
            shares.append(x)
        return shares

    def joined(self, gradients: Sequence[jax.Array | None]) -> list[jax.Array | None]:
        """The gradients of all parts, on a leading axis, as those of the weights."""
        return [
            None if pieces is None else self._join(pieces, cut) for pieces, cut in zip(gradients, self.cut, strict=True)
        ]

    def _part(self, x, cut, part):
        if cut is None or self.parts == 1:
            return x
        pieces = x.reshape(*x.shape[:cut], self.groups, self.parts, -1, *x.shape[cut + 1 :])
        piece = jax.lax.dynamic_index_in_dim(pieces, part, cut + 1, keepdims=False)
        return piece.reshape(*x.shape[:cut], -1, *x.shape[cut + 1 :])

    def _join(self, pieces, cut):
        if cut is None:
            return pieces.sum(0)
        _, *shape = pieces.shape
        pieces = pieces.reshape(self.parts, *shape[:cut], self.groups, -1, *shape[cut + 1 :])
        return jnp.moveaxis(pieces, 0, cut + 1).reshape(*shape[:cut], -1, *shape[cut + 1 :])


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _added(update, layout, weights, tiles):
    """tiles [n, tokens, D] and their updates; `weights` is a list, of which those without a gradient cost none."""

    def one_part(part, sums):
        whole = layout.gathered(weights, part)

        def one(index, sums):
            return _put(sums, _take(sums, index) + update(whole, _take(tiles, index)), index)

        return jax.lax.fori_loop(0, len(tiles), one, sums)

    return jax.lax.fori_loop(0, layout.parts, one_part, tiles)


def _added_forward(update, layout, weights, tiles):
    trained = [leaf.value if leaf.perturbed else None for leaf in weights]
    frozen = [None if leaf.perturbed else leaf.value for leaf in weights]
    return _added(update, layout, [leaf.value for leaf in weights], tiles.value), (trained, frozen, tiles.value)


def _added_backward(update, layout, residuals, gradients):
    trained, frozen, tiles = residuals
    weights = _either(trained, frozen)

    def one_part(of_tiles, part):
        whole = layout.gathered(weights, part)
        still = [own if leaf is None else None for own, leaf in zip(whole, trained, strict=True)]
        moving = [None if leaf is None else own for own, leaf in zip(whole, trained, strict=True)]

        def one(index, state):
            sums, of_tiles = state
            of_part = partial(_update_by, update, still)
            of_weights, of_tile = jax.vjp(of_part, moving, _take(tiles, index))[1](_take(gradients, index))
            sums = jax.tree.map(lambda total, more: total + more.astype(jnp.float32), sums, of_weights)
            return sums, _put(of_tiles, _take(of_tiles, index) + of_tile, index)

        start = jax.tree.map(lambda x: jnp.zeros_like(x, jnp.float32), moving), of_tiles
        sums, of_tiles = jax.lax.fori_loop(0, len(tiles), one, start)
        return of_tiles, layout.scattered(jax.tree.map(lambda total: total.astype(layout.dtype), sums))

    of_tiles, of_parts = jax.lax.scan(one_part, gradients, jnp.arange(layout.parts))
    of_weights = [
        None if x is None else x.astype(leaf.dtype) for x, leaf in zip(layout.joined(of_parts), trained, strict=True)
    ]
    return of_weights, of_tiles


_added.defvjp(_added_forward, _added_backward, symbolic_zeros=True)


def _update_by(update, still, moving, x):
    return update(_either(moving, still), x)


def _either(first, second):
    return [b if a is None else a for a, b in zip(first, second, strict=True)]


def _take(tiles, index):
    return jax.lax.dynamic_index_in_dim(tiles, index, keepdims=False)


def _put(tiles, tile, index):
    return jax.lax.dynamic_update_index_in_dim(tiles, tile, index, axis=0)


def _cut_axis(axes):
    return axes.index("mlp") if "mlp" in axes else None


def _hidden_units(leaves, names):
    return [leaf.shape[axes.index("mlp")] for leaf, axes in zip(leaves, names, strict=True) if "mlp" in axes]


def _split_apart(mesh: Mesh, rules: ShardingRules, manual: MeshAxes) -> int:
    return split_count(mesh, tuple(name for name in rules.mlp if name not in manual))


def _restricted(spec, names):
    """The entries of a PartitionSpec that are among these mesh axes."""
    kept = (tuple(name for name in mesh_axes((entry,)) if name in names) for entry in spec)
    return PartitionSpec(*(entry or None for entry in kept))
