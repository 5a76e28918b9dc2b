"""LoRA adapters to a folder in the file format of PEFT, which transformers and serving engines load onto a base."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

from jvlmm.errors import CheckpointError
from jvlmm.models.config import ModelConfig
from jvlmm.models.huggingface.adapter_file import CONFIG_FILE, WEIGHTS_FILE, read_adapter
from jvlmm.models.huggingface.low_rank import LowRank
from jvlmm.models.huggingface.names import checkpoint_tensors, module_name
from jvlmm.models.huggingface.save import make_anew, on_host, write_json, written_whole


def save_adapter(
    directory: str | Path,
    adapters: Mapping[str, Any],
    config: ModelConfig,
    alpha: float,
    base: str,
    earlier: str | Path | None = None,
) -> None:
    """Write `adapters` as `adapter_config.json` and `adapter_model.safetensors`, in float32.

    Keys are `base_model.model.MODULE.lora_A.weight` [r, inputs] and `lora_B.weight` [outputs, r], with MODULE as
    transformers 5 names the projection; a convolution's keep the axes of its kernel. W + (alpha / r) B A is then the
    merged kernel. The folder appears whole or not at all. With several processes all must call; the first writes.

    Args:
      adapters: {module: {…: {"lora_a": [*inputs, r], "lora_b": [r, *outputs]}}}, laid out as `config.scan_layers` says.
      base: the folder or name of the model they belong to, for those who load them.
      earlier: folder of the adapter that was merged into `base` before these were trained. The file then holds the sum
        of both, of the sum of their ranks, so that it belongs to `base` itself.

    Raises CheckpointError where `directory` holds something else or cannot be written.
    """
    directory = Path(directory).absolute()
    weights, modules, rank = _weights(flatten_dict(adapters, sep="."), config)
    patterns = {}
    if earlier is not None:
        patterns = _add_earlier(weights, modules, read_adapter(earlier, config), config=config, scale=alpha / rank)
    if jax.process_index() != 0:
        return
    if directory.exists() and not (directory / CONFIG_FILE).is_file():
        raise CheckpointError(f"{directory} holds something other than an adapter; choose a new folder")
    with written_whole(directory, "adapter") as partial_dir:
        make_anew(partial_dir)
        save_file(weights, partial_dir / WEIGHTS_FILE, metadata={"format": "pt"})
        write_json(partial_dir / CONFIG_FILE, _peft_config(modules, rank, alpha, base) | patterns)
        shutil.copymode(partial_dir / CONFIG_FILE, partial_dir / WEIGHTS_FILE)


def _weights(flat: Mapping[str, Any], config: ModelConfig) -> tuple[dict[str, np.ndarray], list[str], int]:
    """(PEFT's tensors, the modules they belong to, rank)."""
    weights: dict[str, np.ndarray] = {}
    modules: list[str] = []
    for tensor in checkpoint_tensors(config):
        path = tensor.path.removesuffix(".kernel")
        if not tensor.inputs or f"{path}.lora_a" not in flat:
            continue
        a, b = (on_host(tensor.layer(flat[f"{path}.{name}"]), "float32") for name in ("lora_a", "lora_b"))
        rank, kernel_axes = len(b), len(tensor.stored_shape) - 2
        modules.append(module_name(tensor))
        key = f"base_model.model.{modules[-1]}"
        a = a.reshape(-1, rank).T.reshape(rank, *tensor.stored_shape[1:])
        b = b.reshape(rank, -1).T.reshape(-1, rank, *[1] * kernel_axes)
        weights[f"{key}.lora_A.weight"] = np.ascontiguousarray(a)
        weights[f"{key}.lora_B.weight"] = np.ascontiguousarray(b)
    return weights, modules, rank


def _add_earlier(
    weights: dict[str, np.ndarray],
    modules: list[str],
    earlier: Mapping[str, LowRank],
    config: ModelConfig,
    scale: float,
) -> dict[str, Any]:
    """Adds the updates of an earlier adapter to `weights` and `modules`, in place, and returns PEFT's options of ranks.

    B A of both is the product of their matrices side by side; alpha grows with the rank of a module, so that the
    scale stays what it is.
    """
    ranks: dict[str, int] = {}
    for tensor in checkpoint_tensors(config):
        update = earlier.get(tensor.key)
        if update is None:
            continue
        name, axes = module_name(tensor), tensor.stored_shape[1:]
        key = f"base_model.model.{name}"
        a = update.a.reshape(-1, *axes)
        b = (update.b * np.float32(update.scale / scale)).reshape(*update.b.shape, *[1] * (len(axes) - 1))
        if name in modules:
            a = np.concatenate([weights[f"{key}.lora_A.weight"], a])
            b = np.concatenate([weights[f"{key}.lora_B.weight"], b], axis=1)
        else:
            modules.append(name)
        weights[f"{key}.lora_A.weight"], weights[f"{key}.lora_B.weight"] = a, b
        ranks[name] = len(a)
    return {"rank_pattern": ranks, "alpha_pattern": {name: scale * rank for name, rank in ranks.items()}}


def _peft_config(modules: list[str], rank: int, alpha: float, base: str) -> dict[str, Any]:
    """What PEFT reads; every other field has a default there."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": modules,
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
