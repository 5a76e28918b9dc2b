"""A start for new decoders: the first layer's heads look at neighbouring tokens."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from jvlmm.models.config import ModelConfig
from jvlmm.models.layers import inverse_frequencies

_LOOKS = ((1, 50.0), (2, 50.0), (3, 17.0), (0, 17.0))  # by head: how many tokens back, and the score there


def with_neighbour_heads(params: dict[str, Any], config: ModelConfig) -> dict[str, Any]:
    """`params` whose first decoder layer attends, before any training, one, two, three and no tokens back.

    To copy by induction (Olsson et al., arXiv:2209.11895) tokens must first know their neighbours, and small models
    wait long for such heads to form. The rotary embedding turns constant queries and keys into a function of
    distance alone: with biases e^(-i ω d) and 1 in every pair of dimensions the scores are a sum of cos(ω (distance
    - d)). Heads beyond the fourth begin the row again.

    Args:
        params: of unrolled layers (`config.scan_layers` is False); only biases of the first one's queries and keys
            are replaced.
    """
    decoder = params["decoder"]
    attention = decoder["layers_0"]["self_attn"]
    angles = inverse_frequencies(config.text.head_dim, config.text.rope_theta)
    query = np.zeros(attention["q_proj"]["bias"].shape, np.float32)
    key_size = (config.text.head_dim**0.5 * _LOOKS[0][1] / len(angles)) ** 0.5
    key = np.concatenate([np.full_like(angles, key_size), np.zeros_like(angles)])
    for head in range(len(query)):
        distance, score = _LOOKS[head % len(_LOOKS)]
        size = config.text.head_dim**0.5 * score / len(angles) / key_size
        query[head] = size * np.concatenate([np.cos(angles * distance), -np.sin(angles * distance)])
    biases = {"q_proj": query, "k_proj": np.broadcast_to(key, attention["k_proj"]["bias"].shape)}
    changed = {
        name: {**attention[name], "bias": jnp.asarray(bias, attention[name]["bias"].dtype)}
        for name, bias in biases.items()
    }
    layer = {**decoder["layers_0"], "self_attn": {**attention, **changed}}
    return {**params, "decoder": {**decoder, "layers_0": layer}}
