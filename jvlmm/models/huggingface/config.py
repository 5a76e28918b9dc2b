"""config.json of a Qwen2.5-VL checkpoint, read in every published layout and written in the hub's."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import Qwen2_5_VLConfig

from jvlmm.errors import CheckpointError
from jvlmm.models.config import ModelConfig, SpecialTokens, TextConfig, VisionConfig
from jvlmm.models.huggingface.files import has_own_head
from jvlmm.models.huggingface.json_file import optional_json, read_json
from jvlmm.models.huggingface.processors import normalisation
from jvlmm.models.huggingface.refusals import (
    check_generation,
    check_shape,
    check_sizes,
    refuse_adapter,
    refuse_quantised,
)

MODEL_TYPE = "qwen2_5_vl"
ARCHITECTURE = "Qwen2_5_VLForConditionalGeneration"


def load_config(directory: str | Path) -> ModelConfig:
    """Shape and special tokens of the checkpoint in `directory`; execution options keep their defaults.

    Reads the flat layout of the hub (`rope_scaling`) and the nested one of transformers 5 (`rope_parameters`), the
    end and pad tokens of generation_config.json and the normalisation of the processor files where they exist.
    Where config.json ties the head to the embedding and the weights hold a head that differs, the head counts, as
    transformers 5 has it. Raises CheckpointError for a missing or malformed file, sizes no model has, another
    architecture, quantised weights, an adapter without its model, or a feature that is not supported.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: no such checkpoint directory; pass a folder that holds config.json")
    refuse_adapter(directory)
    path = directory / "config.json"
    raw = read_json(path)
    if raw.get("model_type") != MODEL_TYPE:
        raise CheckpointError(
            f"{path}: model_type is {str(raw.get('model_type'))[:60]!r}; only {MODEL_TYPE!r} is supported"
        )
    refuse_quantised(directory, raw)
    check_sizes(raw, path)
    generation = optional_json(directory / "generation_config.json")
    check_generation(generation, directory / "generation_config.json")
    try:
        config = Qwen2_5_VLConfig.from_dict(raw)
        _require_supported(config, path)
        found = ModelConfig(
            vision=_vision_config(config, directory),
            text=_text_config(config),
            tokens=_special_tokens(config, generation),
        )
    except (TypeError, ValueError, KeyError, AttributeError, StrictDataclassError) as error:
        message = " ".join(str(error).split())
        raise CheckpointError(f"{path}: not a usable {MODEL_TYPE} config: {message[:300]}") from error
    check_shape(found, path)
    if found.text.tie_word_embeddings and has_own_head(directory):
        found = replace(found, text=replace(found.text, tie_word_embeddings=False))
    return found


def hub_config(config: ModelConfig, dtype: str) -> dict[str, Any]:
    """The flat config.json of the hub's Qwen2.5-VL checkpoints, which transformers 4.49 and all later read."""
    text, vision, tokens = config.text, config.vision, config.tokens
    return {
        "architectures": [ARCHITECTURE],
        "model_type": MODEL_TYPE,
        "torch_dtype": dtype,
        "attention_dropout": 0.0,
        "bos_token_id": tokens.pad,
        "eos_token_id": tokens.eos[0],
        "pad_token_id": tokens.pad,
        "image_token_id": tokens.image,
        "video_token_id": tokens.video,
        "vision_start_token_id": tokens.vision_start,
        "vision_end_token_id": tokens.vision_end,
        "hidden_act": "silu",
        "hidden_size": text.hidden_size,
        "intermediate_size": text.intermediate_size,
        "max_position_embeddings": text.max_position_embeddings,
        "max_window_layers": text.num_layers,
        "num_attention_heads": text.num_heads,
        "num_hidden_layers": text.num_layers,
        "num_key_value_heads": text.num_kv_heads,
        "rms_norm_eps": text.rms_norm_eps,
        "rope_theta": text.rope_theta,
        "rope_scaling": {"type": "mrope", "mrope_section": list(text.mrope_section)},
        "tie_word_embeddings": text.tie_word_embeddings,
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": text.vocab_size,
        "vision_config": {
            "depth": vision.depth,
            "fullatt_block_indexes": list(vision.fullatt_block_indexes),
            "hidden_act": "silu",
            "hidden_size": vision.hidden_size,
            "in_channels": vision.in_channels,
            "intermediate_size": vision.intermediate_size,
            "num_heads": vision.num_heads,
            "out_hidden_size": vision.out_hidden_size,
            "patch_size": vision.patch_size,
            "spatial_merge_size": vision.spatial_merge_size,
            "temporal_patch_size": vision.temporal_patch_size,
            "tokens_per_second": _integer_where_exact(vision.tokens_per_second),
            "window_size": vision.window_size,
        },
    }


def untied(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a config.json of either layout in which the head is a parameter of its own."""
    changed = {**raw, "tie_word_embeddings": False}
    if isinstance(raw.get("text_config"), Mapping):
        changed["text_config"] = {**raw["text_config"], "tie_word_embeddings": False}
    return changed


def generation_config(config: ModelConfig) -> dict[str, Any]:
    """generation_config.json: the tokens that end and pad a completion."""
    return {"eos_token_id": list(config.tokens.eos), "pad_token_id": config.tokens.pad}


def _require_supported(config: Qwen2_5_VLConfig, path: Path) -> None:
    """Refuses what the model would silently compute otherwise."""
    text, vision = config.text_config, config.vision_config
    checks = [
        ("hidden_act", text.hidden_act, "silu"),
        ("vision_config.hidden_act", vision.hidden_act, "silu"),
        ("rope type", text.rope_parameters["rope_type"], "default"),
        ("use_sliding_window", bool(text.use_sliding_window), False),
        ("vision rope_theta", vision.rope_parameters.get("rope_theta", 10000.0), 10000.0),
    ]
    for name, found, supported in checks:
        if found != supported:
            raise CheckpointError(f"{path}: {name} is {found!r}; only {supported!r} is supported")


def _vision_config(config: Qwen2_5_VLConfig, directory: Path) -> VisionConfig:
    vision = config.vision_config
    names = (
        "depth hidden_size num_heads intermediate_size out_hidden_size patch_size temporal_patch_size "
        "spatial_merge_size window_size in_channels tokens_per_second"
    )
    patches = {name: getattr(vision, name) for name in ("patch_size", "temporal_patch_size")}
    return VisionConfig(
        **{name: getattr(vision, name) for name in names.split()},
        fullatt_block_indexes=tuple(vision.fullatt_block_indexes),
        **normalisation(directory, {**patches, "merge_size": vision.spatial_merge_size}),
    )


def _text_config(config: Qwen2_5_VLConfig) -> TextConfig:
    text = config.text_config
    return TextConfig(
        vocab_size=text.vocab_size,
        hidden_size=text.hidden_size,
        intermediate_size=text.intermediate_size,
        num_layers=text.num_hidden_layers,
        num_heads=text.num_attention_heads,
        num_kv_heads=text.num_key_value_heads,
        rope_theta=float(text.rope_parameters["rope_theta"]),
        mrope_section=tuple(text.rope_parameters["mrope_section"]),
        rms_norm_eps=text.rms_norm_eps,
        tie_word_embeddings=config.tie_word_embeddings,
        max_position_embeddings=text.max_position_embeddings,
    )


def _special_tokens(config: Qwen2_5_VLConfig, generation: dict[str, Any]) -> SpecialTokens:
    eos = generation.get("eos_token_id", config.text_config.eos_token_id)
    eos = SpecialTokens.eos if eos is None else (eos,) if isinstance(eos, int) else tuple(eos)
    pads = (generation.get("pad_token_id"), config.text_config.pad_token_id, eos[-1])
    return SpecialTokens(
        image=config.image_token_id,
        video=config.video_token_id,
        vision_start=config.vision_start_token_id,
        vision_end=config.vision_end_token_id,
        eos=eos,
        pad=next(pad for pad in pads if pad is not None),
    )


def _integer_where_exact(value: float) -> float:
    """transformers wants whole tokens per second as an int."""
    return int(value) if value == int(value) else value
