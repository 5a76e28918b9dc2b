"""Weights from safetensors straight into their target sharding, one tensor on the host at a time."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from jvlmm.errors import CheckpointError
from jvlmm.models.config import ModelConfig
from jvlmm.models.huggingface.files import locate_tensors, read_tensors
from jvlmm.models.huggingface.names import Tensor, checkpoint_tensors


def load_params(directory: str | Path, config: ModelConfig, shardings: Any = None) -> Mapping[str, Any]:
    """Parameters {"vision", "merger", "decoder"} of the checkpoint, as `config.param_dtype`.

    Files are memory-mapped one after another and each device is handed only its slices, so the host never holds
    more than one file and one tensor. bfloat16, float16 and float32 files are read, in one file or sharded with an
    index, under the hub's key names or those of transformers 5.

    Args:
      config: from `load_config(directory)`; `scan_layers` chooses the stacked or the unrolled tree.
      shardings: tree of NamedSharding like the parameters; None leaves everything on the default device.

    Raises CheckpointError where the files are missing, damaged or do not fit `config`.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: no such checkpoint directory; pass a folder that holds config.json")
    located = locate_tensors(directory, config)
    flat_shardings = {} if shardings is None else flatten_dict(shardings, sep=".")
    rows = _row_counts(config)
    params: dict[str, jax.Array] = {}
    dtype = jnp.dtype(config.param_dtype)

    def place(tensor: Tensor, read: Callable) -> None:
        sharding = flat_shardings.get(tensor.path)
        array = _to_devices(tensor, read, sharding)
        if tensor.row is None:
            params[tensor.path] = array.astype(dtype)
            return
        if tensor.path not in params:
            params[tensor.path] = _empty((rows[tensor.path], *tensor.shape), dtype, sharding)
        params[tensor.path] = _insert(params[tensor.path], array, tensor.row)

    for path, tensors in located.items():
        read_tensors(path, tensors, place)
    return unflatten_dict(params, sep=".")


def _row_counts(config: ModelConfig) -> dict[str, int]:
    counts: dict[str, int] = {}
    for tensor in checkpoint_tensors(config):
        counts[tensor.path] = counts.get(tensor.path, 0) + 1
    return counts


def _to_devices(tensor: Tensor, read: Callable, sharding: Sharding | None) -> jax.Array:
    """The tensor, or the row of a stacked parameter, in the stored dtype on the devices that need it."""
    if sharding is None:
        return jax.device_put(read((slice(None),) * len(tensor.shape)))
    if tensor.row is not None and isinstance(sharding, NamedSharding):
        sharding = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))
    return jax.make_array_from_callback(tensor.shape, sharding, read)


def _empty(shape: tuple[int, ...], dtype: jnp.dtype, sharding: Sharding | None) -> jax.Array:
    return jax.jit(partial(jnp.zeros, shape, dtype), out_shardings=sharding)()


@partial(jax.jit, donate_argnums=0)
def _insert(stacked: jax.Array, array: jax.Array, row: int) -> jax.Array:
    """`stacked` with one row replaced, in place."""
    return jax.lax.dynamic_update_index_in_dim(stacked, array.astype(stacked.dtype), row, axis=0)
