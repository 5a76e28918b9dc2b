"""The safetensors files of a checkpoint folder: which tensor lies where, checked before anything is read."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import jax
from safetensors import SafetensorError, safe_open

from jvlmm.errors import CheckpointError
from jvlmm.models.config import ModelConfig
from jvlmm.models.huggingface.config import read_json
from jvlmm.models.huggingface.names import Tensor, canonical_key, checkpoint_tensors, is_redundant

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_DTYPES = ("F32", "BF16", "F16")


@dataclass(frozen=True)
class StoredTensor:
    """Header entry of one tensor."""

    key: str  # as the file spells it
    shape: tuple[int, ...]
    dtype: str  # safetensors' name, such as BF16


def locate_tensors(directory: Path, config: ModelConfig) -> Mapping[Path, list[tuple[Tensor, str]]]:
    """File -> the tensors of a model of this shape that it holds, with the key it stores each under.

    Reads headers only. Raises CheckpointError for a missing or truncated file, and for a missing, unknown or
    wrongly shaped tensor.
    """
    found: dict[str, tuple[Path, StoredTensor]] = {}
    for path in _weight_files(directory):
        for stored in _read_header(path):
            found[canonical_key(stored.key)] = (path, stored)
    wanted = {tensor.key: tensor for tensor in checkpoint_tensors(config)}
    _refuse_key_mismatch(directory, wanted, found, config)
    located: dict[Path, list[tuple[Tensor, str]]] = {}
    for key, (path, stored) in found.items():
        if key not in wanted:
            continue
        if stored.shape != wanted[key].stored_shape:
            raise CheckpointError(
                f"{path}: {stored.key} has shape {stored.shape}, config.json asks for {wanted[key].stored_shape}; "
                f"use the config.json that belongs to these weights"
            )
        if stored.dtype not in _DTYPES:
            allowed = ", ".join(_DTYPES)
            raise CheckpointError(
                f"{path}: {stored.key} is {stored.dtype}; allowed: {allowed}. Use unquantised weights"
            )
        located.setdefault(path, []).append((wanted[key], stored.key))
    return located


def read_tensor(path: Path, tensor: Tensor, key: str, place: Callable[[Callable], jax.Array]) -> jax.Array:
    """`place(read)`, where `read(index)` is the part `index` (slices of every axis) of the parameter.

    Parts have the stored dtype. The file is memory-mapped for this one tensor only, so that no pages of earlier ones
    stay in memory.
    """
    try:
        with safe_open(path, framework="np") as file:
            stored = file.get_slice(key)
            return place(lambda index: tensor.from_stored(stored[tensor.stored_slices(index)], index))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: {_one_line(error)}; the file is damaged, download it again") from None


def _weight_files(directory: Path) -> list[Path]:
    index = directory / INDEX_FILE
    if not index.exists():
        single = directory / SINGLE_FILE
        if not single.is_file():
            raise CheckpointError(
                f"{directory}: holds neither {SINGLE_FILE} nor {INDEX_FILE}; only safetensors are read"
            )
        return [single]
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: has no weight_map; download it again")
    names = sorted(set(weight_map.values()))
    for name in names:
        if Path(name).name != name:
            raise CheckpointError(f"{index}: file {name!r} lies outside the checkpoint; download the checkpoint again")
        if not (directory / name).is_file():
            missing = sum(file == name for file in weight_map.values())
            raise CheckpointError(f"{directory / name}: missing shard ({missing} tensors); download it again")
    return [directory / name for name in names]


def _read_header(path: Path) -> list[StoredTensor]:
    try:
        with safe_open(path, framework="np") as file:
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
            return [StoredTensor(key, tuple(s.get_shape()), s.get_dtype()) for key, s in slices.items()]
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path}: not a complete safetensors file ({_one_line(error)}); download it again"
        ) from None


def _refuse_key_mismatch(directory: Path, wanted: Mapping, found: Mapping, config: ModelConfig) -> None:
    missing = [key for key in wanted if key not in found]
    if missing:
        raise CheckpointError(
            f"{directory}: {len(missing)} tensor(s) missing, first {missing[0]}; "
            f"the weights are incomplete or of another shape than config.json"
        )
    unknown = [stored.key for key, (_, stored) in found.items() if key not in wanted and not is_redundant(key, config)]
    if unknown:
        raise CheckpointError(
            f"{directory}: {len(unknown)} unexpected tensor(s), first {unknown[0]}; "
            f"the weights are of another architecture or shape than config.json"
        )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
