"""Host batches onto the devices of a mesh."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from jvlmm.data.share import Share
from jvlmm.errors import ConfigError
from jvlmm.sharding.batches import batch_shardings, row_shards
from jvlmm.sharding.exchange import Exchange
from jvlmm.sharding.hosts import process_count, process_index
from jvlmm.sharding.rules import ShardingRules, batch_sharding, replicated, split_count
from jvlmm.training.state import TrainState


def check_lengths(length_buckets: Sequence[int], mesh: Mesh, rules: ShardingRules) -> None:
    """ConfigError where rows of these lengths do not divide over the devices that split them."""
    devices = split_count(mesh, rules.length)
    uneven = [length for length in length_buckets if length % devices]
    if uneven:
        raise ConfigError(
            f"length_buckets = {tuple(length_buckets)}: rows of {uneven[0]} tokens do not divide over the {devices} "
            f"devices of mesh axes {rules.length}; use multiples of {devices}, or fewer devices along context"
        )


def batch_placement(mesh: Mesh, rules: ShardingRules, batch_size: int) -> Callable[[Any], Any]:
    """Function that puts a host batch on the devices as `batch_shardings` says.

    With several processes, each gives the rows of its own devices. ConfigError where the rows do not divide.
    """
    devices, _ = row_shards(mesh, rules)
    if batch_size % devices:
        raise ConfigError(
            f"batch_size = {batch_size} does not divide over the {devices} devices of mesh axes {rules.batch}; "
            f"use a multiple of {devices}, or fewer devices along data and fsdp"
        )
    if process_count() == 1:
        return lambda batch: jax.device_put(batch, batch_shardings(batch, mesh, rules))
    held = held_shards(mesh, rules)[process_index()]

    def place(batch: Any) -> Any:
        shape = lambda x: (x.shape[0] // len(held) * devices, *x.shape[1:])  # noqa: E731
        whole = jax.tree.map(lambda x: jax.ShapeDtypeStruct(shape(x), x.dtype), batch)
        shardings = batch_shardings(whole, mesh, rules)
        return jax.tree.map(lambda x, y, s: _global_array(x, y.shape, s, held), batch, whole, shardings)

    return place


def held_shards(mesh: Mesh, rules: ShardingRules) -> tuple[tuple[int, ...], ...]:
    """For every process, which shards of a batch's rows its devices hold."""
    sharding, devices = batch_sharding(mesh, rules), row_shards(mesh, rules)[0]
    held: dict[int, set[int]] = {}
    for device, (rows, *_) in sharding.devices_indices_map((devices,)).items():
        held.setdefault(device.process_index, set()).add(rows.start or 0)
    return tuple(tuple(sorted(held[process])) for process in sorted(held))


def loader_share(name: str, mesh: Mesh, rules: ShardingRules) -> Share | None:
    """The part of the stage's batches that this process reads; None where it is alone."""
    if process_count() == 1:
        return None
    return Share(Exchange(name), held_shards(mesh, rules), process_index())


def _global_array(array: np.ndarray, shape: tuple[int, ...], sharding: NamedSharding, held: Sequence[int]) -> jax.Array:
    """The array of this shape of which `array` holds the shards `held`, one after another.

    By callback, for `jax.make_array_from_process_local_data` wants no more of the media of a row than this process's
    devices compute, where its other devices along `context` belong to another process.
    """
    size = array.shape[0] // len(held)

    def part(index: tuple[slice, ...]) -> np.ndarray:
        start, stop, _ = index[0].indices(shape[0])
        first = held.index(start // size) * size + start % size
        return array[first : first + stop - start]

    return jax.make_array_from_callback(shape, sharding, part)


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
