"""The folder of a PEFT adapter, read: LoRA of any rank and scale by module, and nothing that PEFT does besides."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from jvlmm.errors import CheckpointError
from jvlmm.models.config import ModelConfig
from jvlmm.models.huggingface.json_file import read_json
from jvlmm.models.huggingface.low_rank import LowRank
from jvlmm.models.huggingface.names import HEAD, canonical_key, checkpoint_tensors

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
_OF_LORA = re.compile(r"(?P<module>.+)\.lora_(?P<part>[AB])(\.[^.]+)?\.weight")  # an older file names the adapter, too
# Options of PEFT that change what an adapter computes or how its base lies, and what leaves them off.
_OFF = {
    "use_dora": (False, None),
    "fan_in_fan_out": (False, None),
    "lora_bias": (False, None),
    "layer_replication": (None, []),
    "alora_invocation_tokens": (None,),
    "use_qalora": (False, None),
}
_PLAIN_STARTS = (True, False, None, "gaussian", "orthogonal", "eva")  # that leave the base as it is
_REMEDY = "merge it with PEFT (merge_and_unload, save_pretrained) and give the merged model"


def read_adapter(directory: str | Path, config: ModelConfig) -> Mapping[str, LowRank]:
    """Returns the updates of an adapter of a model of this shape, by the canonical key of the tensor each changes.

    Reads what PEFT and `save_adapter` write: `adapter_config.json` and `adapter_model.safetensors` with the names of
    transformers 4.49 or 5. The scale of a module is alpha / r, or alpha / √r (`use_rslora`), by `alpha_pattern` and
    `rank_pattern` where they name it.

    Raises CheckpointError for a folder that is no adapter, that asks for more than LoRA, or that belongs to a model of
    another shape.
    """
    directory = Path(directory)
    path = directory / CONFIG_FILE
    if not path.is_file():
        raise CheckpointError(f"{directory}: no adapter, {CONFIG_FILE} is missing; name a folder that PEFT has written")
    options = read_json(path)
    _check_options(path, options)
    if not (directory / WEIGHTS_FILE).is_file():
        raise CheckpointError(f"{directory}: holds no {WEIGHTS_FILE}; only safetensors are read")
    parts = _read_parts(directory / WEIGHTS_FILE)
    wanted = {tensor.key: tensor for tensor in checkpoint_tensors(config) if len(tensor.stored_shape) > 1}
    updates: dict[str, LowRank] = {}
    for module, matrices in parts.items():
        key = f"{canonical_key(module)}.weight"
        if set(matrices) != {"A", "B"}:
            raise CheckpointError(f"{directory / WEIGHTS_FILE}: {module} has only one of lora_A and lora_B")
        if key == HEAD and config.text.tie_word_embeddings:
            raise CheckpointError(
                f"{directory / WEIGHTS_FILE}: {module} is adapted, and the model's head is its embedding; {_REMEDY}"
            )
        if key not in wanted or key in updates:
            reason = "twice" if key in updates else "which the model does not have"
            raise CheckpointError(f"{directory / WEIGHTS_FILE}: adapts {module}, {reason}; use the adapter's own base")
        a, b = matrices["A"], matrices["B"]
        update = LowRank(a.reshape(len(a), -1), b.reshape(len(b), -1), _scale(path, options, module, len(a)))
        if update.b.shape[1] != len(a) or not update.fits(wanted[key].stored_shape):
            raise CheckpointError(
                f"{directory / WEIGHTS_FILE}: lora_A {a.shape} and lora_B {b.shape} of {module} do not fit a weight of "
                f"{wanted[key].stored_shape}; use the adapter's own base ({options.get('base_model_name_or_path')})"
            )
        updates[key] = update
    if not updates:
        raise CheckpointError(f"{directory / WEIGHTS_FILE}: adapts nothing; name another adapter")
    return updates


def _check_options(path: Path, options: Mapping[str, Any]) -> None:
    """Refuses what would be computed otherwise, or left out in silence."""
    if options.get("peft_type") != "LORA":
        raise CheckpointError(
            f"{path}: peft_type is {str(options.get('peft_type'))[:60]!r}; only 'LORA' is read. {_REMEDY[0].upper()}"
            f"{_REMEDY[1:]}"
        )
    for name, allowed in _OFF.items():
        if options.get(name) not in allowed:
            raise CheckpointError(f"{path}: {name} = {str(options[name])[:60]} is not supported; {_REMEDY}")
    start = options.get("init_lora_weights", True)
    if start not in _PLAIN_STARTS:
        raise CheckpointError(
            f"{path}: init_lora_weights = {str(start)[:60]!r} changes the base as well; convert the adapter with PEFT "
            f"(path_initial_model_for_weight_conversion), or {_REMEDY}"
        )
    for name, kind in (("r", int), ("lora_alpha", (int, float))):
        value = options.get(name, 8)
        if isinstance(value, bool) or not isinstance(value, kind) or not (value > 0 and math.isfinite(value)):
            raise CheckpointError(f"{path}: {name} is {str(value)[:60]}; allowed: a positive number")


def _read_parts(path: Path) -> dict[str, dict[str, np.ndarray]]:
    """Module -> {"A": …, "B": …} in float32; any other tensor is refused."""
    parts: dict[str, dict[str, np.ndarray]] = {}
    try:
        with safe_open(path, framework="np") as file:
            for key in file.keys():  # noqa: SIM118 - not a mapping
                match = _OF_LORA.fullmatch(key)
                if match is None:
                    raise CheckpointError(
                        f"{path}: {key} is neither lora_A nor lora_B of a projection (whole modules, biases and "
                        f"embeddings are not read); {_REMEDY}"
                    )
                parts.setdefault(match["module"], {})[match["part"]] = file.get_tensor(key).astype(np.float32)
    except (SafetensorError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path}: not a complete safetensors file ({reason}); download it again") from None
    return parts


def _scale(path: Path, options: Mapping[str, Any], module: str, rank: int) -> float:
    """What the product of a module's matrices is multiplied by."""
    name = module.removeprefix("base_model.model.")
    stated = _by_pattern(path, options, "rank_pattern", name, options.get("r", 8))
    alpha = _by_pattern(path, options, "alpha_pattern", name, options.get("lora_alpha", 8))
    if stated != rank:
        raise CheckpointError(f"{path}: the rank of {module} is {stated} here and {rank} in {WEIGHTS_FILE}")
    return float(alpha) / (math.sqrt(rank) if options.get("use_rslora") else rank)


def _by_pattern(path: Path, options: Mapping[str, Any], field: str, name: str, default: Any) -> Any:
    """The value of the first pattern that names the module, as PEFT matches them: at the end of its path."""
    patterns = options.get(field) or {}
    for pattern, value in patterns.items():
        try:
            matched = re.match(rf"(.*\.)?({pattern})$", name)
        except re.error as error:
            raise CheckpointError(f"{path}: {field} holds {pattern[:60]!r}, which is no pattern ({error})") from None
        if matched:
            return value
    return default
