"""On eight simulated devices the sharded model computes what one device computes: loss and every gradient."""

import dataclasses

import jax
import numpy as np
import pytest
from closeness import assert_gradients_equal
from toy_model import CONFIG, needs_eight

from jvlmm.data.batch import BatchOptions, collate
from jvlmm.data.sequence import Sequence
from jvlmm.models import qwen2_5_vl
from jvlmm.sharding.batches import row_shards
from jvlmm.sharding.mesh import MeshOptions, make_mesh
from jvlmm.sharding.rules import ShardingRules, named_shardings, replicated
from jvlmm.training.placement import batch_placement
from jvlmm.training.sft import make_sft_loss
from jvlmm.video.clip import Patches

ROWS, LENGTH, GRID = 8, 16, (2, 4, 4)  # 8 visual tokens a row, after 2 of text


def make_batch(shards=1, parts=1):
    """The same batch, its media on so many devices."""
    rng = np.random.default_rng(0)
    sequences = []
    for row in range(ROWS):
        visual_index = np.full(LENGTH - row // 2, -1, np.int32)
        visual_index[2:10] = np.arange(8)
        pixels = rng.integers(0, 256, (32, CONFIG.vision.patch_dim), np.uint8)
        length = len(visual_index)
        sequences.append(
            Sequence(
                id=str(row),
                tokens=rng.integers(0, 90, length).astype(np.int32),
                positions=np.tile(np.arange(length, dtype=np.int32), (3, 1)),
                loss_mask=np.ones(length, bool),
                visual_index=visual_index,
                patches=(Patches(pixels, GRID, 1.0, np.zeros(4), np.zeros(4, int)),),
                next_position=length,
            )
        )
    options = BatchOptions(ROWS, (LENGTH,), (ROWS * 32,), shards=shards, parts=parts)
    return collate(sequences, options, CONFIG)


def mean_loss(params, config, batch):
    total, count, _ = make_sft_loss(config, tile=32)(params, batch)
    return total / count


@pytest.fixture(scope="module")
def unsharded():
    """Unrolled parameters, loss and gradients on one device, as NumPy."""
    params = qwen2_5_vl.init_params(CONFIG, jax.random.key(0))
    results = jax.jit(jax.value_and_grad(mean_loss), static_argnums=1)(params, CONFIG, make_batch())
    return jax.device_get((params, *results))


@needs_eight
@pytest.mark.parametrize(
    ("options", "changes"),
    [
        (MeshOptions(data=1, fsdp=8), {"scan_layers": True, "remat": "full"}),
        (MeshOptions(data=2, fsdp=2, tensor=2), {"remat": "minimal"}),
        (MeshOptions(data=2, fsdp=2, tensor=2), {"mlp_tile": 8, "mlp_parts": 2}),
        (MeshOptions(data=2, fsdp=2, context=2), {"scan_layers": True, "remat": "full", "mlp_tile": 8}),
        (MeshOptions(data=2, fsdp=2, context=2), {"scan_layers": True, "remat": "offload"}),
    ],
    ids=[
        "fsdp-scanned",
        "data-fsdp-tensor",
        "data-fsdp-tensor-tiled",
        "data-fsdp-context-scanned-tiled",
        "data-fsdp-context-offload",
    ],
)
def test_sharded_loss_and_gradients_equal_unsharded(unsharded, options, changes):
    params, loss, gradients = unsharded
    mesh, rules = make_mesh(options, jax.devices()[:8]), ShardingRules()
    config = dataclasses.replace(CONFIG, rules=rules, **changes)
    if config.scan_layers:
        params, gradients = map(jax.device_get, map(qwen2_5_vl.stack_layers, (params, gradients)))
    shapes, logical = qwen2_5_vl.abstract_params(config)
    shardings = named_shardings(mesh, rules, logical, shapes)
    params = jax.device_put(params, shardings)
    batch = batch_placement(mesh, rules, ROWS)(make_batch(*row_shards(mesh, rules)))
    assert batch.vision.pixels.addressable_shards[0].data.shape[0] == 1
    step = jax.jit(jax.value_and_grad(mean_loss), static_argnums=1, out_shardings=(replicated(mesh), shardings))
    with jax.set_mesh(mesh):
        sharded_loss, sharded_gradients = step(params, config, batch)

    head = params["decoder"]["lm_head"]["embedding"]
    assert head.addressable_shards[0].data.size * mesh.shape["fsdp"] * mesh.shape["tensor"] == head.size
    np.testing.assert_allclose(jax.device_get(sharded_loss), loss, rtol=1e-5)
    assert_gradients_equal(sharded_gradients, gradients)
