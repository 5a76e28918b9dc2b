"""What a checkpoint folder must not ask for: sizes nobody has, weights that are no plain numbers, adapters alone.

All is said before anything large is made: transformers itself builds lists as long as a config.json says.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jvlmm.errors import CheckpointError
from jvlmm.models.config import ModelConfig
from jvlmm.models.huggingface.json_file import optional_json

ADAPTER_CONFIG = "adapter_config.json"
_READ = "float32, bfloat16 and float16 weights"

_TEXT_SIZES = {  # key -> smallest and largest value that is taken for meant
    "hidden_size": (1, 2**17),
    "intermediate_size": (1, 2**20),
    "max_position_embeddings": (1, 2**40),
    "num_attention_heads": (1, 1024),
    "num_hidden_layers": (1, 1024),
    "num_key_value_heads": (1, 1024),
    "vocab_size": (1, 2**22),
}
_VISION_SIZES = {
    "depth": (1, 1024),
    "hidden_size": (1, 2**17),
    "in_channels": (1, 64),
    "in_chans": (1, 64),
    "intermediate_size": (1, 2**20),
    "num_heads": (1, 1024),
    "out_hidden_size": (1, 2**17),
    "patch_size": (1, 1024),
    "spatial_merge_size": (1, 64),
    "temporal_patch_size": (1, 64),
    "window_size": (1, 2**16),
}
_QUANTISED_KEYS = {  # the end of a tensor's name -> what writes it
    "qweight": "GPTQ or AWQ",
    "qzeros": "GPTQ or AWQ",
    "absmax": "bitsandbytes",
    "SCB": "bitsandbytes",
    "weight_format": "bitsandbytes",
    "weight_scale": "FP8",
    "weight_scale_inv": "FP8",
    "weight_packed": "compressed-tensors",
}
_QUANTISED_FILES = {"quantize_config.json": "GPTQ", "quant_config.json": "AWQ"}
_NAMES = {"awq": "AWQ", "gptq": "GPTQ", "bitsandbytes": "bitsandbytes", "fp8": "FP8", "fbgemm_fp8": "FP8"}


def refuse_adapter(directory: Path) -> None:
    """Raises CheckpointError for a folder that holds a PEFT adapter and no model."""
    if (directory / "config.json").exists() or not (directory / ADAPTER_CONFIG).is_file():
        return
    config = optional_json(directory / ADAPTER_CONFIG)
    base = config.get("base_model_name_or_path") or "its base model"
    raise CheckpointError(
        f"{directory}: holds a PEFT adapter ({config.get('peft_type', 'of unknown type')}) of {base} and no model; "
        f"give the base as the model and this folder as the adapter: --model BASE --adapter {directory}, in a recipe "
        f"STAGE.model=BASE STAGE.adapter={directory}"
    )


def refuse_quantised(directory: Path, raw: Mapping[str, Any]) -> None:
    """Raises CheckpointError where config.json, or a file beside it, says that the weights are quantised."""
    quantisation = raw.get("quantization_config") or (raw.get("text_config") or {}).get("quantization_config")
    if quantisation:
        method = quantisation.get("quant_method") if isinstance(quantisation, Mapping) else None
        raise _quantised(directory / "config.json", _NAMES.get(str(method), str(method or "an unnamed method")))
    for name, method in _QUANTISED_FILES.items():
        if (directory / name).is_file():
            raise _quantised(directory / name, method)


def refuse_foreign_keys(directory: Path, keys: Iterable[str]) -> None:
    """Raises CheckpointError for names of tensors that are no whole weights: quantised ones, and unmerged LoRA."""
    for key in keys:
        parts = key.split(".")
        method = next((_QUANTISED_KEYS[part] for part in parts[-2:] if part in _QUANTISED_KEYS), None)
        if method is not None:
            raise _quantised(directory, method, f" (tensor {key})")
        if "base_layer" in parts or any(part.startswith("lora_") for part in parts):
            raise CheckpointError(
                f"{directory}: holds LoRA adapters that are not merged (tensor {key}); merge them with PEFT "
                "(merge_and_unload, save_pretrained), or save the adapter alone and give it as --adapter"
            )


def refuse_dtype(path: Path, key: str, dtype: str, allowed: Iterable[str]) -> None:
    """Raises CheckpointError for a tensor of another number format than `allowed`, which safetensors names."""
    if dtype in allowed:
        return
    method = "FP8" if dtype.startswith("F8") else "quantised"
    raise CheckpointError(
        f"{path}: {key} is {dtype} ({method}); allowed: {', '.join(allowed)}. Use the unquantised checkpoint"
    )


def _quantised(where: Path, method: str, detail: str = "") -> CheckpointError:
    return CheckpointError(
        f"{where}: the weights are quantised with {method}{detail}; jvlmm reads {_READ}. Use the unquantised "
        "checkpoint, or write one with transformers (model.dequantize(), save_pretrained)"
    )


def check_sizes(raw: Mapping[str, Any], path: Path) -> None:
    """Raises CheckpointError, with the key, for a size in config.json that no model has."""
    groups = (("", raw, _TEXT_SIZES), ("text_config.", raw.get("text_config"), _TEXT_SIZES))
    for prefix, group, sizes in (*groups, ("vision_config.", raw.get("vision_config"), _VISION_SIZES)):
        if group is None:
            continue
        if not isinstance(group, Mapping):
            raise CheckpointError(f"{path}: {prefix.rstrip('.')} is no JSON object; use the checkpoint's own file")
        for key, (low, high) in sizes.items():
            value = group.get(key)
            if value is not None and (type(value) is not int or not low <= value <= high):
                raise CheckpointError(
                    f"{path}: {prefix}{key} is {_short(value)}; allowed: an integer from {low} to {high}. Use the "
                    "config.json that belongs to these weights"
                )
        _check_token_ids(group, path, prefix)
    blocks = (raw.get("vision_config") or {}).get("fullatt_block_indexes")
    if blocks is not None and not (isinstance(blocks, list) and len(blocks) <= 1024 and all(map(_is_id, blocks))):
        raise CheckpointError(
            f"{path}: vision_config.fullatt_block_indexes is {_short(blocks)}; allowed: a list of up to 1024 integers"
        )


def check_generation(raw: Mapping[str, Any], path: Path) -> None:
    """Raises CheckpointError for token ids of generation_config.json that are none."""
    _check_token_ids(raw, path, "")


def _check_token_ids(group: Mapping[str, Any], path: Path, prefix: str) -> None:
    for key, value in group.items():
        if not key.endswith("_token_id") or value is None or _is_id(value):
            continue
        many = key == "eos_token_id" and isinstance(value, list) and 0 < len(value) <= 64 and all(map(_is_id, value))
        if not many:
            raise CheckpointError(f"{path}: {prefix}{key} is {_short(value)}; allowed: a token id of 0 or more")


def check_shape(config: ModelConfig, path: Path) -> None:
    """Raises CheckpointError for sizes that do not go together, with their keys."""
    text, vision = config.text, config.vision
    checks = (
        ("hidden_size", text.hidden_size, "num_attention_heads", text.num_heads),
        ("num_attention_heads", text.num_heads, "num_key_value_heads", text.num_kv_heads),
        ("vision_config.hidden_size", vision.hidden_size, "vision_config.num_heads", vision.num_heads),
    )
    for name, value, divisor_name, divisor in checks:
        if value % divisor:
            raise CheckpointError(f"{path}: {name} = {value} is not divisible by {divisor_name} = {divisor}")
    if vision.out_hidden_size != text.hidden_size:
        raise CheckpointError(
            f"{path}: vision_config.out_hidden_size = {vision.out_hidden_size} and hidden_size = {text.hidden_size} "
            "must be equal"
        )
    sections = text.mrope_section
    valid = len(sections) == 3 and all(map(_is_id, sections)) and 2 * sum(sections) == text.head_dim
    if not valid:
        raise CheckpointError(
            f"{path}: mrope_section is {_short(list(sections))}; allowed: three integers of the sum "
            f"{text.head_dim // 2}, half of hidden_size / num_attention_heads"
        )


def _is_id(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**31


def _short(value: Any) -> str:
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**30 else "an integer of over 30 digits"
    return text if len(text) <= 60 else text[:57] + "…"
