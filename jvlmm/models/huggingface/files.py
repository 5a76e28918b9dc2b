"""The safetensors files of a checkpoint folder: which tensor lies where, checked before anything is read."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from safetensors import SafetensorError, safe_open

from jvlmm.errors import CheckpointError
from jvlmm.models.config import ModelConfig
from jvlmm.models.huggingface.json_file import read_json
from jvlmm.models.huggingface.low_rank import LowRank
from jvlmm.models.huggingface.names import (
    EMBEDDING,
    HEAD,
    Tensor,
    canonical_key,
    checkpoint_tensors,
    is_redundant,
)
from jvlmm.models.huggingface.refusals import refuse_dtype, refuse_foreign_keys

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_DTYPES = ("F32", "BF16", "F16")
_ROWS_AT_ONCE = 4096  # of the embedding, in a comparison


@dataclass(frozen=True)
class StoredTensor:
    """Header entry of one tensor."""

    key: str  # as the file spells it
    shape: tuple[int, ...]
    dtype: str  # safetensors' name, such as BF16


def locate_tensors(directory: Path, config: ModelConfig) -> Mapping[Path, list[tuple[Tensor, str]]]:
    """File -> the tensors of a model of this shape that it holds, with the key it stores each under.

    Reads headers only. The embedding of a tied model may stand under the name of its head alone. Raises
    CheckpointError for a missing or truncated file, for a missing, unknown or wrongly shaped tensor, and for weights
    that are quantised or not merged.
    """
    found = _stored_tensors(directory)
    if config.text.tie_word_embeddings and EMBEDDING not in found and HEAD in found:
        found[EMBEDDING] = found.pop(HEAD)
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
        refuse_dtype(path, stored.key, stored.dtype, _DTYPES)
        located.setdefault(path, []).append((wanted[key], stored.key))
    return located


def has_own_head(directory: Path) -> bool:
    """Whether the weights hold a head that differs from the embedding; False where either is missing.

    Both are read, in parts, where a checkpoint holds the two.
    """
    if not any((directory / name).exists() for name in (SINGLE_FILE, INDEX_FILE)):
        return False
    found = _stored_tensors(directory)
    if HEAD not in found or EMBEDDING not in found:
        return False
    (head_path, head), (table_path, table) = found[HEAD], found[EMBEDDING]
    if head.shape != table.shape or head.dtype != table.dtype or not head.shape:
        return True
    try:
        with safe_open(head_path, framework="np") as of_head, safe_open(table_path, framework="np") as of_table:
            heads, tables = of_head.get_slice(head.key), of_table.get_slice(table.key)
            rows = head.shape[0]
            parts = [slice(i, min(i + _ROWS_AT_ONCE, rows)) for i in range(0, rows, _ROWS_AT_ONCE)]
            return any((heads[part] != tables[part]).any() for part in parts)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{head_path}: {_one_line(error)}; the file is damaged, download it again") from None


def read_tensor(
    path: Path, tensor: Tensor, key: str, place: Callable[[Callable], jax.Array], update: LowRank | None = None
) -> jax.Array:
    """`place(read)`, where `read(index)` is the part `index` (slices of every axis) of the parameter.

    Parts have the stored dtype, or float32 with `update`, which is added to them. The file is memory-mapped for this
    one tensor only, so that no pages of earlier ones stay in memory.
    """

    def read(index: tuple[slice, ...]) -> np.ndarray:
        slices = tensor.stored_slices(index)
        block = stored[slices]
        return tensor.from_stored(block if update is None else update.added_to(block, slices), index)

    try:
        with safe_open(path, framework="np") as file:
            stored = file.get_slice(key)
            return place(read)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: {_one_line(error)}; the file is damaged, download it again") from None


def _stored_tensors(directory: Path) -> dict[str, tuple[Path, StoredTensor]]:
    """Canonical key -> (file, header entry) of all tensors of a folder."""
    found: dict[str, tuple[Path, StoredTensor]] = {}
    for path in _weight_files(directory):
        stored_tensors = _read_header(path)
        refuse_foreign_keys(directory, (stored.key for stored in stored_tensors))
        for stored in stored_tensors:
            key = canonical_key(stored.key)
            if key in found:
                raise CheckpointError(
                    f"{directory}: tensors {found[key][1].key} and {stored.key} are both {key}; save the model once"
                )
            found[key] = (path, stored)
    return found


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
    for key, name in weight_map.items():
        if not isinstance(name, str):
            raise CheckpointError(
                f"{index}: weight_map[{key[:100]!r}] is {str(name)[:60]}; a file's name is expected. Download it again"
            )
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
