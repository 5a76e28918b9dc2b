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
from jvlmm.models.huggingface.adapter_file import read_adapter
from jvlmm.models.huggingface.files import locate_tensors, read_tensor
from jvlmm.models.huggingface.names import Tensor, checkpoint_tensors


def load_params(
    directory: str | Path, config: ModelConfig, shardings: Any = None, adapter: str | Path | None = None
) -> Mapping[str, Any]:
    """Parameters {"vision", "merger", "decoder"} of the checkpoint, as `config.param_dtype`.

    Files are memory-mapped, one tensor at a time, and each device is handed only its slices: the host never holds
    more than one tensor. bfloat16, float16 and float32 files are read, in one file or sharded with an
    index, under the hub's key names, those of transformers 5, or either behind the prefixes of wrappers.

    Args:
      config: from `load_config(directory)`; `scan_layers` chooses the stacked or the unrolled tree.
      shardings: tree of NamedSharding like the parameters; None leaves everything on the default device.
      adapter: folder of a PEFT adapter of LoRA, which is merged in float32 while the weights are read.

    Raises CheckpointError where the files are missing, damaged or do not fit `config`, and for an adapter that the
    checkpoint holds already.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: no such checkpoint directory; pass a folder that holds config.json")
    if adapter is not None and _is_merged(directory.resolve(), Path(adapter).resolve()):
        raise CheckpointError(
            f"{directory}: holds the adapter {adapter} already, which would be added a second time; give this model "
            "without an adapter, or the model that it was trained from with it"
        )
    updates = {} if adapter is None else read_adapter(adapter, config)
    flat_shardings = {} if shardings is None else flatten_dict(shardings, sep=".")
    rows = _row_counts(config)
    params: dict[str, jax.Array] = {}
    for path, tensors in locate_tensors(directory, config).items():
        for tensor, key in tensors:
            sharding = flat_shardings.get(tensor.path)
            array = read_tensor(
                path, tensor, key, place=partial(_to_devices, tensor, sharding), update=updates.get(tensor.key)
            )
            if tensor.row is None:
                param = array.astype(config.param_dtype)
            else:
                if tensor.path not in params:
                    shape = (rows[tensor.path], *tensor.shape)
                    params[tensor.path] = _empty(shape, config.param_dtype, sharding)
                param = _insert(params[tensor.path], array, tensor.row)
            # Waiting keeps dispatch from running ahead and holding more than one tensor on the host.
            params[tensor.path] = param.block_until_ready()
    return unflatten_dict(params, sep=".")


def _is_merged(model: Path, adapter: Path) -> bool:
    """Whether both are of one stage of a run: `models/NAME`, with the adapter merged into it, and `adapters/NAME`."""
    of_runs = (model.parent.name, adapter.parent.name) == ("models", "adapters")
    of_one_stage = (model.parent.parent, model.name) == (adapter.parent.parent, adapter.name)
    return of_runs and of_one_stage and (model.parent.parent / "stages" / f"{model.name}.json").is_file()


def _row_counts(config: ModelConfig) -> dict[str, int]:
    counts: dict[str, int] = {}
    for tensor in checkpoint_tensors(config):
        counts[tensor.path] = counts.get(tensor.path, 0) + 1
    return counts


def _to_devices(tensor: Tensor, sharding: Sharding | None, read: Callable) -> jax.Array:
    """The tensor, or the row of a stacked parameter, in the stored dtype on the devices that need it."""
    if sharding is None:
        return jax.device_put(read((slice(None),) * len(tensor.shape)))
    if tensor.row is not None and isinstance(sharding, NamedSharding):
        sharding = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))
    return jax.make_array_from_callback(tensor.shape, sharding, read)


def _empty(shape: tuple[int, ...], dtype: str, sharding: Sharding | None) -> jax.Array:
    return jax.jit(partial(jnp.zeros, shape, dtype), out_shardings=sharding)()


@partial(jax.jit, donate_argnums=0)
def _insert(stacked: jax.Array, array: jax.Array, row: int) -> jax.Array:
    """`stacked` with one row replaced, in place."""
    return jax.lax.dynamic_update_index_in_dim(stacked, array.astype(stacked.dtype), row, axis=0)
