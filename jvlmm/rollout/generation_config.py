"""How a checkpoint itself wants its completions drawn: its generation_config.json, as transformers reads it."""

from collections.abc import Collection, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from jvlmm.errors import CheckpointError, ConfigError
from jvlmm.models.huggingface.json_file import read_json
from jvlmm.rollout.sampling import SamplingOptions

_TOP_K = 50  # of transformers, where a file that samples states none
_FILTERS = ("top_k", "top_p", "min_p")
_OFF = {  # what changes completions and is not offered here -> the values that leave it off
    "num_beams": (None, 1),
    "penalty_alpha": (None, 0),
    "typical_p": (None, 1),
    "top_h": (None,),
    "epsilon_cutoff": (None, 0),
    "eta_cutoff": (None, 0),
    "encoder_repetition_penalty": (None, 1),
    "no_repeat_ngram_size": (None, 0),
    "encoder_no_repeat_ngram_size": (None, 0),
    "bad_words_ids": (None, []),
    "sequence_bias": (None, {}, []),
    "suppress_tokens": (None, []),
    "begin_suppress_tokens": (None, []),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "exponential_decay_length_penalty": (None,),
    "guidance_scale": (None, 1),
    "watermarking_config": (None,),
    "min_length": (None, 0),
    "min_new_tokens": (None, 0),
}


def checkpoint_sampling(
    options: SamplingOptions, model_dir: str | Path, explicit: Collection[str] = ()
) -> SamplingOptions:
    """Returns `options` completed by the checkpoint's generation_config.json, where `options.from_checkpoint` asks.

    An option that differs from its default, or whose name stands in `explicit`, stays; the others follow the file as in
    transformers: temperature, top-k (50 where it states none), top-p and min-p where `do_sample` is true or a
    temperature was asked for, and the repetition penalty. Numbers of tokens and stop strings are not read.

    Raises CheckpointError where there is no such file, or it asks for what is not offered here.
    """
    if not options.from_checkpoint:
        return options
    path = Path(model_dir) / "generation_config.json"
    if not path.is_file():
        raise CheckpointError(
            f"{path}: no such file, which sampling.from_checkpoint=true reads; set sampling.from_checkpoint=false and "
            "the options themselves"
        )
    stated = read_json(path)
    for name, allowed in _OFF.items():
        if stated.get(name) not in allowed:
            raise CheckpointError(
                f"{path}: {name} = {str(stated[name])[:60]} is not offered here; set sampling.from_checkpoint=false "
                "and the options themselves"
            )
    chosen = {
        field.name
        for field in fields(SamplingOptions)
        if field.name in explicit or getattr(options, field.name) != field.default
    }
    try:
        return replace(options, from_checkpoint=False, **_completed(options, stated, chosen))
    except (ConfigError, TypeError) as error:
        raise CheckpointError(f"{path}: {error}") from None


def _completed(options: SamplingOptions, stated: Mapping[str, Any], chosen: set[str]) -> dict[str, Any]:
    """The options that the file sets."""
    wanted: dict[str, Any] = {"repetition_penalty": stated.get("repetition_penalty")}
    sampled = options.temperature > 0 if "temperature" in chosen else bool(stated.get("do_sample"))
    if sampled:
        temperature = stated.get("temperature")
        wanted["temperature"] = 1.0 if temperature is None else temperature
        wanted |= {"top_k": _TOP_K} | {name: stated[name] for name in _FILTERS if stated.get(name) is not None}
    return {name: value for name, value in wanted.items() if value is not None and name not in chosen}
