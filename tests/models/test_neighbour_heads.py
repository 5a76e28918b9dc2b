"""What a new decoder's first layer looks at before any training."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from jvlmm.models.decoder import mrope_tables
from jvlmm.models.layers import rotate
from jvlmm.models.neighbour_heads import with_neighbour_heads
from jvlmm.models.presets import PRESETS
from jvlmm.models.qwen2_5_vl import init_params

CONFIG = replace(PRESETS["tiny"], scan_layers=False)


def test_heads_of_the_first_layer_look_at_neighbours():
    params = with_neighbour_heads(init_params(CONFIG, jax.random.key(0)), CONFIG)
    biases = {
        name: params["decoder"]["layers_0"]["self_attn"][name]["bias"][None, :, None] for name in ("q_proj", "k_proj")
    }
    positions = jnp.broadcast_to(jnp.arange(60), (1, 3, 60))
    cos, sin = (table[:, None] for table in mrope_tables(positions, CONFIG.text))
    spread = jnp.ones((1, 1, 60, 1))
    query, key = (rotate(biases[name] * spread, cos, sin) for name in ("q_proj", "k_proj"))
    key = jnp.repeat(key, CONFIG.text.num_heads // CONFIG.text.num_kv_heads, axis=1)
    scores = np.array(jnp.einsum("bhqd,bhkd->bhqk", query, key)[0]) / CONFIG.text.head_dim**0.5
    last = scores[:, -1, ::-1]  # by distance
    assert last.argmax(axis=1).tolist() == [1, 2, 3, 0]
    np.testing.assert_allclose(last.max(axis=1), [50, 50, 17, 17], rtol=1e-4)
    assert (last[:2].max(axis=1) - np.sort(last[:2], axis=1)[:, -2] > 3).all()


def test_nothing_else_changes():
    before = init_params(CONFIG, jax.random.key(0))
    after = with_neighbour_heads(before, CONFIG)
    same = jax.tree.map(lambda a, b: bool((a == b).all()), before, after)
    changed = [jax.tree_util.keystr(path) for path, equal in jax.tree_util.tree_leaves_with_path(same) if not equal]
    assert changed == [f"['decoder']['layers_0']['self_attn']['{n}']['bias']" for n in ("k_proj", "q_proj")]
