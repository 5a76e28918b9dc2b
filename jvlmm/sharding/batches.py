"""Host arrays onto the devices of a mesh, and back."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Devices:
    """What rows are worked on: the devices of a mesh, as rules share them out, or without a mesh the default one."""

    mesh: Mesh | None
    rules: ShardingRules | None

    @classmethod
    def of(cls, mesh: Mesh | None, rules: ShardingRules | None) -> "Devices":
        """One device needs no mesh."""
        return cls(mesh, rules) if mesh is not None and mesh.size > 1 else cls(None, None)

    @property
    def shards(self) -> tuple[int, int]:
        """See `row_shards`."""
        return row_shards(self.mesh, self.rules) if self.mesh else (1, 1)

    def in_use(self) -> AbstractContextManager:
        """For what they do."""
        return jax.set_mesh(self.mesh) if self.mesh else nullcontext()

    def put(self, arrays: Any) -> Any:
        """Host arrays of rows on the devices that have them; without a mesh as they are."""
        return placed(arrays, batch_shardings(arrays, self.mesh, self.rules)) if self.mesh else arrays

    def put_media(self, arrays: Any) -> Any:
        """The same of media in shards."""
        return placed(arrays, shardings_over("media", arrays, self.mesh, self.rules)) if self.mesh else arrays

    def put_whole(self, array: np.ndarray) -> jax.Array:
        """A host array on each of them."""
        return placed(array, replicated(self.mesh)) if self.mesh else jax.device_put(array)


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
