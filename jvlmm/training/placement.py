"""Host batches onto the devices of a mesh."""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from jvlmm.errors import ConfigError
from jvlmm.sharding.rules import ShardingRules, batch_sharding, replicated
from jvlmm.training.state import TrainState


def batch_placement(mesh: Mesh, rules: ShardingRules, batch_size: int) -> Callable[[Any], Any]:
    """Function that splits every array of a batch over the mesh axes of the logical axis `batch`.

    Arrays whose first axis those devices do not divide (odd numbers of patches or windows) are replicated:
    the result is the same, only slower. The batch itself has to divide.
    """
    split, whole = batch_sharding(mesh, rules), replicated(mesh)
    devices = math.prod(mesh.shape[axis] for axis in rules.batch)
    if batch_size % devices:
        raise ConfigError(
            f"batch_size = {batch_size} does not divide over the {devices} devices of mesh axes {rules.batch}; "
            f"use a multiple of {devices}, or fewer devices along data and fsdp"
        )

    def place(array):
        divides = array.ndim > 0 and array.shape[0] % devices == 0
        return jax.device_put(array, split if divides else whole)

    return lambda batch: jax.tree.map(place, batch)


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
