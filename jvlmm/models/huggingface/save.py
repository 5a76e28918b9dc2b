"""Parameters to a Hugging Face checkpoint folder that appears whole or not at all."""

import json
import math
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jax.experimental import multihost_utils
from safetensors import SafetensorError
from safetensors.numpy import save_file

from jvlmm.errors import CheckpointError
from jvlmm.models.config import ModelConfig
from jvlmm.models.huggingface.config import generation_config, hub_config
from jvlmm.models.huggingface.files import INDEX_FILE, SINGLE_FILE
from jvlmm.models.huggingface.json_file import read_json
from jvlmm.models.huggingface.names import Tensor, checkpoint_tensors
from jvlmm.sharding.hosts import wait_for_all

_DTYPES = ("float32", "bfloat16", "float16")
_COMPANIONS = (
    "tokenizer*",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "*processor_config.json",
    "jvlmm_processing.json",
)


def save_checkpoint(
    directory: str | Path,
    params: Mapping[str, Any],
    config: ModelConfig,
    dtype: str = "bfloat16",
    source_dir: str | Path | None = None,
    max_shard_bytes: int = 5 * 10**9,
) -> None:
    """Write `params` as a checkpoint that transformers opens: the hub's key names and its flat config.json.

    Everything is written beside `directory` and renamed at the end; an earlier checkpoint there is replaced only
    then, and its other files are kept. One shard at a time is on the host. Where `params` are split over several
    processes, all of these must call; the first writes, and none returns before it has.

    Args:
      dtype: of the stored tensors: float32, bfloat16 or float16.
      source_dir: folder whose tokenizer and processor files are copied.
      max_shard_bytes: a larger model is split into files of at most this size with an index.

    Raises CheckpointError where `directory` cannot be written, holds something else, or `params` do not fit `config`.
    """
    directory = Path(directory).absolute()
    if dtype not in _DTYPES:
        raise CheckpointError(f"cannot save weights as {dtype!r}; allowed: {', '.join(_DTYPES)}")
    flat = flatten_dict(params, sep=".")
    tensors = list(checkpoint_tensors(config))
    _check_params(flat, tensors)
    shards = _plan_shards(tensors, jnp.dtype(dtype).itemsize, max_shard_bytes)
    writes = jax.process_index() == 0
    with written_whole(directory, "checkpoint", writes) as partial_dir:
        if writes:
            _prepare(directory, partial_dir, source_dir)
        for name, shard in shards.items():
            arrays = {tensor.key: _stored(flat[tensor.path], tensor, dtype) for tensor in shard}
            if writes:
                save_file(arrays, partial_dir / name, metadata={"format": "pt"})
        if writes:
            _write_json_files(partial_dir, config, dtype, shards, source_dir)
            for name in shards:  # safetensors writes files that only their owner may read
                shutil.copymode(partial_dir / "config.json", partial_dir / name)
            _keep_other_files(directory, partial_dir)
    if not all(getattr(array, "is_fully_addressable", True) for array in flat.values()):
        wait_for_all(f"saved {directory}")


def copy_companions(source: str | Path, target: str | Path) -> None:
    """Copy tokenizer and processor files of one checkpoint folder into another."""
    source = Path(source)
    if not source.is_dir():
        raise CheckpointError(f"{source}: no such directory to copy tokenizer and processor files from")
    for pattern in _COMPANIONS:
        for path in sorted(source.glob(pattern)):
            if path.is_file():
                shutil.copyfile(path, Path(target) / path.name)


def _check_params(flat: Mapping[str, Any], tensors: list[Tensor]) -> None:
    rows: dict[str, list[Tensor]] = {}
    for tensor in tensors:
        rows.setdefault(tensor.path, []).append(tensor)
    for path in [*rows, *flat]:
        if path not in flat or path not in rows:
            state = "is missing" if path not in flat else "is not part of the model"
            raise CheckpointError(f"parameter {path} {state}; save with the config the parameters were made with")
        first = rows[path][0]
        shape = first.shape if first.row is None else (len(rows[path]), *first.shape)
        if tuple(flat[path].shape) != shape:
            raise CheckpointError(f"parameter {path} has shape {tuple(flat[path].shape)}, the config asks for {shape}")


def _plan_shards(tensors: list[Tensor], itemsize: int, max_bytes: int) -> dict[str, list[Tensor]]:
    """File name -> tensors, filled in the order of the model."""
    groups: list[list[Tensor]] = []
    filled = 0
    for tensor in tensors:
        size = math.prod(tensor.stored_shape) * itemsize
        if not groups or filled + size > max_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(tensor)
        filled += size
    if len(groups) == 1:
        return {SINGLE_FILE: groups[0]}
    return {f"model-{i:05d}-of-{len(groups):05d}.safetensors": group for i, group in enumerate(groups, start=1)}


def _stored(param: jax.Array, tensor: Tensor, dtype: str) -> np.ndarray:
    return tensor.to_stored(on_host(tensor.layer(param), dtype))


def on_host(array: jax.Array, dtype: str) -> np.ndarray:
    """The whole array as `dtype`, wherever its parts lie; all processes must call."""
    array = array.astype(dtype)
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        array = multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(array)


@contextmanager
def written_whole(directory: Path, what: str, writes: bool = True) -> Iterator[Path]:
    """Context with the path of a folder to make; at its end that takes the place of `directory`, or else it vanishes.

    Where it cannot be written, CheckpointError calls it `what`. A process that does not write leaves the folder alone.
    """
    partial_dir = directory.with_name(f".{directory.name}.partial")
    try:
        yield partial_dir
        if writes:
            _swap(partial_dir, directory)
    except (OSError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"cannot write the {what} {directory}: {reason}; free space or choose another") from None
    finally:
        if writes:
            shutil.rmtree(partial_dir, ignore_errors=True)


def _prepare(directory: Path, partial_dir: Path, source_dir: str | Path | None) -> None:
    entries = list(directory.iterdir()) if directory.is_dir() else []
    if directory.exists() and not directory.is_dir():
        raise CheckpointError(f"{directory} is a file; choose a folder to write the checkpoint to")
    if entries and (not (directory / "config.json").is_file() or any(entry.is_dir() for entry in entries)):
        raise CheckpointError(f"{directory} holds something other than a checkpoint; choose an empty or a new folder")
    make_anew(partial_dir)
    if source_dir is not None:
        copy_companions(source_dir, partial_dir)


def make_anew(folder: Path) -> None:
    """An empty folder, whatever an interrupted run has left there."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _write_json_files(
    partial_dir: Path, config: ModelConfig, dtype: str, shards: Mapping[str, list[Tensor]], source_dir: Any
) -> None:
    write_json(partial_dir / "config.json", hub_config(config, dtype))
    source = None if source_dir is None else Path(source_dir) / "generation_config.json"
    sampling = read_json(source) if source is not None and source.is_file() else {"do_sample": False}
    write_json(partial_dir / "generation_config.json", {**sampling, **generation_config(config)})
    if len(shards) > 1:
        weight_map = {tensor.key: name for name, shard in shards.items() for tensor in shard}
        elements = sum(math.prod(tensor.stored_shape) for shard in shards.values() for tensor in shard)
        total = elements * jnp.dtype(dtype).itemsize
        write_json(partial_dir / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": weight_map})


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write indented JSON."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _keep_other_files(directory: Path, partial_dir: Path) -> None:
    """Carry over what an earlier checkpoint's folder holds besides its weights."""
    for path in _files(directory):
        weights = path.name.endswith((".safetensors", ".safetensors.index.json"))
        if not weights and not (partial_dir / path.name).exists():
            shutil.copyfile(path, partial_dir / path.name)


def _files(directory: Path) -> Iterator[Path]:
    return directory.iterdir() if directory.is_dir() else iter(())


def _swap(partial_dir: Path, directory: Path) -> None:
    """Put the finished folder in place; the earlier one goes only once the new one stands."""
    earlier = directory.with_name(f".{directory.name}.earlier")
    shutil.rmtree(earlier, ignore_errors=True)
    if directory.exists():
        directory.rename(earlier)
    try:
        partial_dir.rename(directory)
    except OSError:
        if earlier.exists():
            earlier.rename(directory)
        raise
    shutil.rmtree(earlier, ignore_errors=True)
