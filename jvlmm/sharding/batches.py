"""Host arrays onto the devices of a mesh, and back."""

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from jvlmm.sharding.hosts import process_count
from jvlmm.sharding.rules import ShardingRules, batch_sharding, replicated, split_count


def row_shards(mesh: Mesh, rules: ShardingRules) -> tuple[int, int]:
    """Devices that split the rows of a batch, and devices that split each of those rows' media further."""
    rows = split_count(mesh, rules.batch)
    return rows, split_count(mesh, rules.media) // rows


def batch_shardings(batch: Any, mesh: Mesh, rules: ShardingRules) -> Any:
    """A NamedSharding for every array of a batch: rows, and the media of rows in shards, over the axes of `batch`.

    Arrays whose first axis does not divide (media that are not in shards) are replicated: slower, and the same.
    """
    shardings = shardings_over("batch", batch, mesh, rules)
    vision = getattr(batch, "vision", None)
    if vision is None or len(vision.pixels.shape) == 2:
        return shardings
    return shardings.replace(vision=shardings_over("media", vision, mesh, rules))


def shardings_over(axis: str, arrays: Any, mesh: Mesh, rules: ShardingRules) -> Any:
    """A NamedSharding for every array: its first axis over the logical `axis` where that divides it, else whole."""
    split, devices = batch_sharding(mesh, rules, axis), split_count(mesh, getattr(rules, axis))
    of = lambda array: split if array.ndim and array.shape[0] % devices == 0 else replicated(mesh)  # noqa: E731
    return jax.tree.map(of, arrays)


def placed(batch: Any, shardings: Any) -> Any:
    """Host arrays that every process has whole, laid out so; `shardings` as of `batch_shardings`."""

    def place(array, sharding):
        array = np.asarray(array)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(place, batch, shardings)


def fetched(arrays: Any) -> Any:
    """Device arrays as NumPy's own, whole, in every process."""
    if process_count() > 1:
        arrays = multihost_utils.process_allgather(arrays, tiled=True)
    return jax.tree.map(np.array, jax.device_get(arrays))
