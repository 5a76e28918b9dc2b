"""Host batches onto the devices of a mesh."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from jvlmm.errors import ConfigError
from jvlmm.sharding.rules import ShardingRules, batch_sharding, replicated, split_count
from jvlmm.training.state import TrainState


def row_shards(mesh: Mesh, rules: ShardingRules) -> tuple[int, int]:
    """Devices that split the rows of a batch, and devices that split each of those rows' media further."""
    rows = split_count(mesh, rules.batch)
    return rows, split_count(mesh, rules.media) // rows


def batch_placement(mesh: Mesh, rules: ShardingRules, batch_size: int) -> Callable[[Any], Any]:
    """Function that puts a host batch on the devices as `batch_shardings` says.

    ConfigError where the rows do not divide.
    """
    devices, _ = row_shards(mesh, rules)
    if batch_size % devices:
        raise ConfigError(
            f"batch_size = {batch_size} does not divide over the {devices} devices of mesh axes {rules.batch}; "
            f"use a multiple of {devices}, or fewer devices along data and fsdp"
        )
    return lambda batch: jax.device_put(batch, batch_shardings(batch, mesh, rules))


def batch_shardings(batch: Any, mesh: Mesh, rules: ShardingRules) -> Any:
    """A NamedSharding for every array of a batch: rows, and the media of rows in shards, over the axes of `batch`.

    Arrays whose first axis does not divide (media that are not in shards) are replicated: slower, and the same.
    """
    whole = replicated(mesh)

    def over(axis):
        split, devices = batch_sharding(mesh, rules, axis), split_count(mesh, getattr(rules, axis))
        return lambda array: split if array.ndim and array.shape[0] % devices == 0 else whole

    shardings = jax.tree.map(over("batch"), batch)
    vision = getattr(batch, "vision", None)
    if vision is None or len(vision.pixels.shape) == 2:
        return shardings
    return shardings.replace(vision=jax.tree.map(over("media"), vision))


def state_shardings(state: TrainState, params_shardings: Any, mesh: Mesh) -> TrainState:
    """TrainState of NamedShardings: moments lie as the parameters they belong to, scalars on every device.

    Args:
      state: TrainState of arrays or ShapeDtypeStructs.
      params_shardings: tree of NamedSharding like `state.params`.
    """
    by_path = {_names(path): s for path, s in jax.tree_util.tree_flatten_with_path(params_shardings)[0]}

    def sharding(path, leaf):
        names = _names(path)
        owner = next((names[i:] for i in range(len(names)) if names[i:] in by_path), None)
        return by_path[owner] if owner and leaf.ndim else replicated(mesh)

    return TrainState(
        step=replicated(mesh),
        params=params_shardings,
        opt_state=jax.tree_util.tree_map_with_path(sharding, state.opt_state),
    )


def _names(path: tuple[Any, ...]) -> tuple[str, ...]:
    return tuple(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)
