"""A layer put before a decoder's others: it changes nothing as yet, and looks at neighbours."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvlmm.models.decoder import mrope_tables
from jvlmm.models.layers import rotate
from jvlmm.models.neighbour_layer import with_neighbour_layer
from jvlmm.models.presets import PRESETS
from jvlmm.models.qwen2_5_vl import forward, init_params

CONFIG = replace(PRESETS["tiny"], scan_layers=False)


@pytest.fixture(scope="module")
def before():
    return init_params(CONFIG, jax.random.key(0))


@pytest.fixture(scope="module")
def after(before):
    return with_neighbour_layer(before, CONFIG, jax.random.key(1))


def test_the_output_is_the_same(before, after):
    tokens = jnp.arange(12).reshape(1, 12)
    text = tokens, jnp.broadcast_to(tokens[:, None], (1, 3, 12)), jnp.ones_like(tokens)
    params, config = after
    assert config.text.num_layers == CONFIG.text.num_layers + 1
    np.testing.assert_allclose(forward(params, config, *text), forward(before, CONFIG, *text), atol=1e-6)


def test_heads_look_at_neighbours(after):
    params, config = after
    attention = params["decoder"]["layers_0"]["self_attn"]
    biases = {name: attention[name]["bias"][None, :, None] for name in ("q_proj", "k_proj")}
    positions = jnp.broadcast_to(jnp.arange(60), (1, 3, 60))
    cos, sin = (table[:, None] for table in mrope_tables(positions, config.text))
    spread = jnp.ones((1, 1, 60, 1))
    query, key = (rotate(biases[name] * spread, cos, sin) for name in ("q_proj", "k_proj"))
    key = jnp.repeat(key, config.text.num_heads // config.text.num_kv_heads, axis=1)
    scores = np.array(jnp.einsum("bhqd,bhkd->bhqk", query, key)[0]) / config.text.head_dim**0.5
    last = scores[:, -1, ::-1]  # by distance
    assert last.argmax(axis=1).tolist() == [1, 2, 3, 0]
    np.testing.assert_allclose(last.max(axis=1), [100, 100, 34, 34], rtol=1e-4)
    assert (last[:2].max(axis=1) - np.sort(last[:2], axis=1)[:, -2] > 3).all()
