"""A first layer that looks at neighbouring tokens, put before the layers a small decoder has."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jvlmm.models.config import ModelConfig
from jvlmm.models.layers import inverse_frequencies
from jvlmm.models.qwen2_5_vl import init_params

_LOOKS = ((1, 100.0), (2, 100.0), (3, 34.0), (0, 34.0))  # by head: how many tokens back, and the score there


def with_neighbour_layer(
    params: dict[str, Any], config: ModelConfig, key: jax.Array
) -> tuple[dict[str, Any], ModelConfig]:
    """`params` and `config` of a decoder with one more layer before the others, which changes no output as yet.

    To copy by induction (Olsson et al., arXiv:2209.11895) tokens must first know their neighbours, and small models
    wait long for heads that tell them. The new layer's heads attend one, two, three and no tokens back from the
    start; what they read is random and not written, until it is learnt.

    Args:
        params: of unrolled layers (`config.scan_layers` is False).
    """
    text = replace(config.text, num_layers=config.text.num_layers + 1)
    config = replace(config, text=text)
    layer = init_params(config, key)["decoder"]["layers_0"]
    attention = {**layer["self_attn"], "o_proj": jax.tree.map(jnp.zeros_like, layer["self_attn"]["o_proj"])}
    attention |= {name: {**attention[name], "bias": bias} for name, bias in _biases(attention, config).items()}
    mlp = {**layer["mlp"], "down_proj": jax.tree.map(jnp.zeros_like, layer["mlp"]["down_proj"])}
    decoder = dict(params["decoder"])
    for index in reversed(range(text.num_layers - 1)):
        decoder[f"layers_{index + 1}"] = decoder[f"layers_{index}"]
    decoder["layers_0"] = {**layer, "self_attn": attention, "mlp": mlp}
    return {**params, "decoder": decoder}, config


def _biases(attention, config: ModelConfig) -> dict[str, jax.Array]:
    """Of queries and keys, so that scores depend on distance alone.

    The rotary embedding turns constant queries and keys into a function of distance: with biases e^(-i ω d) and 1 in
    every pair of dimensions the scores are a sum of cos(ω (distance - d)). Heads beyond the fourth begin the row again.
    """
    angles = inverse_frequencies(config.text.head_dim, config.text.rope_theta)
    old = {name: attention[name]["bias"] for name in ("q_proj", "k_proj")}
    query = np.zeros(old["q_proj"].shape, np.float32)
    key_size = (config.text.head_dim**0.5 * _LOOKS[0][1] / len(angles)) ** 0.5
    key = np.concatenate([np.full_like(angles, key_size), np.zeros_like(angles)])
    for head in range(len(query)):
        distance, score = _LOOKS[head % len(_LOOKS)]
        size = config.text.head_dim**0.5 * score / len(angles) / key_size
        query[head] = size * np.concatenate([np.cos(angles * distance), -np.sin(angles * distance)])
    new = {"q_proj": query, "k_proj": np.broadcast_to(key, old["k_proj"].shape)}
    return {name: jnp.asarray(bias, old[name].dtype) for name, bias in new.items()}
