"""On eight simulated devices the sharded model computes what one device computes: loss and every gradient."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvlmm.models import qwen2_5_vl
from jvlmm.models.config import ModelConfig, SpecialTokens, TextConfig, VisionConfig
from jvlmm.models.vision_inputs import build_vision_inputs
from jvlmm.sharding.mesh import MeshOptions, make_mesh
from jvlmm.sharding.rules import ShardingRules, batch_sharding, named_shardings, replicated

needs_eight = pytest.mark.skipif(
    jax.device_count() < 8, reason=f"needs 8 (simulated) devices, there are {jax.device_count()}"
)

CONFIG = ModelConfig(
    vision=VisionConfig(
        depth=2, hidden_size=32, num_heads=2, intermediate_size=48, out_hidden_size=64, fullatt_block_indexes=(1,)
    ),
    text=TextConfig(
        vocab_size=96,
        hidden_size=64,
        intermediate_size=80,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        mrope_section=(2, 3, 3),
        tie_word_embeddings=False,
    ),
    tokens=SpecialTokens(image=90, video=91, vision_start=92, vision_end=93, eos=(94,), pad=95),
)
ROWS, LENGTH, GRID = 8, 12, (1, 4, 4)  # 4 visual tokens a row, after 2 of text


def make_batch():
    rng = np.random.default_rng(0)
    pixels = [rng.integers(0, 256, (16, CONFIG.vision.patch_dim), np.uint8) for _ in range(ROWS)]
    vision, rows = build_vision_inputs(pixels, [GRID] * ROWS, CONFIG.vision, fold=True)
    visual_index = np.full((ROWS, LENGTH), -1, np.int32)
    visual_index[:, 2:6] = np.stack(rows)
    text = {
        "tokens": rng.integers(0, 90, (ROWS, LENGTH)).astype(np.int32),
        "positions": np.broadcast_to(np.arange(LENGTH, dtype=np.int32), (ROWS, 3, LENGTH)).copy(),
        "segment_ids": np.ones((ROWS, LENGTH), np.int32),
        "visual_index": visual_index,
    }
    return text, vision


def mean_loss(params, config, text, vision):
    features = qwen2_5_vl.encode_vision(params, config, vision)
    hidden = qwen2_5_vl.forward(params, config, **text, features=features)
    targets = jnp.roll(text["tokens"], -1, axis=1)
    return -jnp.mean(qwen2_5_vl.token_log_probs(params, config, hidden, targets, tile=32))


@pytest.fixture(scope="module")
def unsharded():
    """Unrolled parameters, loss and gradients on one device, as NumPy."""
    params = qwen2_5_vl.init_params(CONFIG, jax.random.key(0))
    results = jax.jit(jax.value_and_grad(mean_loss), static_argnums=1)(params, CONFIG, *make_batch())
    return jax.device_get((params, *results))


@needs_eight
@pytest.mark.parametrize(
    ("options", "scan_layers"),
    [(MeshOptions(data=1, fsdp=8), True), (MeshOptions(data=2, fsdp=2, tensor=2), False)],
    ids=["fsdp-scanned", "data-fsdp-tensor"],
)
def test_sharded_loss_and_gradients_equal_unsharded(unsharded, options, scan_layers):
    params, loss, gradients = unsharded
    config = dataclasses.replace(CONFIG, scan_layers=scan_layers)
    if scan_layers:
        params, gradients = map(jax.device_get, map(qwen2_5_vl.stack_layers, (params, gradients)))
    mesh, rules = make_mesh(options, jax.devices()[:8]), ShardingRules()
    shapes, logical = qwen2_5_vl.abstract_params(config)
    shardings = named_shardings(mesh, rules, logical, shapes)
    params = jax.device_put(params, shardings)
    text, vision = make_batch()
    vision = jax.device_put(vision, replicated(mesh)).replace(
        pixels=jax.device_put(vision.pixels, batch_sharding(mesh, rules))
    )
    text = jax.device_put(text, batch_sharding(mesh, rules))
    step = jax.jit(jax.value_and_grad(mean_loss), static_argnums=1, out_shardings=(replicated(mesh), shardings))
    sharded_loss, sharded_gradients = step(params, config, text, vision)

    head = params["decoder"]["lm_head"]["embedding"]
    assert head.addressable_shards[0].data.size * mesh.shape["fsdp"] * mesh.shape["tensor"] == head.size
    np.testing.assert_allclose(jax.device_get(sharded_loss), loss, rtol=1e-5)
    expected = dict(jax.tree_util.tree_leaves_with_path(gradients))
    for path, found in jax.tree_util.tree_leaves_with_path(jax.device_get(sharded_gradients)):
        scale = np.max(np.abs(expected[path]))
        assert scale > 0 or "k_proj" in jax.tree_util.keystr(path)  # a key's bias cancels in the softmax
        np.testing.assert_allclose(found, expected[path], atol=1e-4 * scale + 1e-9, err_msg=jax.tree_util.keystr(path))
