"""Adapters: what they compute, that they alone are trained and saved, on one device and on eight."""

from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_model
from closeness import assert_gradients_equal
from flax.traverse_util import flatten_dict
from toy_model import needs_eight

from jvlmm.data.batch import BatchOptions, collate
from jvlmm.data.sequence import Sequence
from jvlmm.errors import CheckpointError, ConfigError
from jvlmm.models.huggingface.convert import to_huggingface
from jvlmm.models.huggingface.save import write_json
from jvlmm.models.qwen2_5_vl import abstract_params, stack_layers
from jvlmm.sharding.batches import row_shards
from jvlmm.sharding.mesh import MeshOptions, make_mesh
from jvlmm.sharding.rules import ShardingRules
from jvlmm.training import preparation
from jvlmm.training.checkpoints import Checkpoints
from jvlmm.training.flops import decoder_flops, update_flops, vision_flops
from jvlmm.training.lora import (
    ADAPTERS,
    LoraOptions,
    adapted_modules,
    init_adapters,
    merge_adapters,
    with_adapters,
)
from jvlmm.training.optimizer import OptimizerOptions
from jvlmm.training.sft import make_sft_loss
from jvlmm.training.state import TrainState
from jvlmm.video.clip import Patches

CONFIG = replace(toy_model.CONFIG, vision=replace(toy_model.CONFIG.vision, depth=1, fullatt_block_indexes=(0,)))
SCANNED = replace(CONFIG, scan_layers=True, remat="full", mlp_tile=8, mlp_parts=2)
EVERYWHERE = LoraOptions(rank=3, alpha=5.0, targets=("*",))
OPTIMIZER = OptimizerOptions(learning_rate=1e-2, schedule="constant", weight_decay=0.1)
ALONE = make_mesh(MeshOptions(1), jax.devices()[:1])
ROWS, LENGTH = 8, 16


def make_batch(shards=1, parts=1):
    """Rows of four visual tokens and some text."""
    rng = np.random.default_rng(0)
    sequences = []
    for row in range(ROWS):
        length = LENGTH - row // 2
        visual_index = np.full(length, -1, np.int32)
        visual_index[2:6] = np.arange(4)
        pixels = rng.integers(0, 256, (16, CONFIG.vision.patch_dim), np.uint8)
        patches = (Patches(pixels, (1, 4, 4), 1.0, np.zeros(2), np.zeros(2, int)),)
        tokens = rng.integers(0, 90, length).astype(np.int32)
        positions = np.tile(np.arange(length, dtype=np.int32), (3, 1))
        sequences.append(Sequence(str(row), tokens, positions, np.ones(length, bool), visual_index, patches, length))
    return collate(sequences, BatchOptions(ROWS, (LENGTH,), (ROWS * 16,), shards=shards, parts=parts), CONFIG)


def laid_out(params, config):
    """Unrolled parameters or adapters as `config` stores them."""
    return stack_layers(params) if config.scan_layers else params


def drawn(shapes, size):
    """Random float32 arrays, those of norms near 1."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        return rng.normal("scale" in jax.tree_util.keystr(path), size, leaf.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


@pytest.fixture(scope="module")
def params():
    return drawn(abstract_params(CONFIG)[0], 0.15)


@pytest.fixture(scope="module")
def adapters():
    """Of every projection, and neither matrix zero."""
    return drawn(shapes_of(CONFIG, EVERYWHERE), 0.1)


made_from = jax.jit(init_adapters, static_argnums=(0, 1))


def shapes_of(config, options):
    return jax.eval_shape(partial(init_adapters, config, options), jax.random.key(0))


@partial(jax.jit, static_argnums=1)
def mean_loss(params, config, batch):
    total, count, _ = make_sft_loss(config, tile=32)(params, batch)
    return total / count


@pytest.mark.parametrize("config", [replace(CONFIG, flatten_tokens=True), SCANNED], ids=["unrolled", "scanned"])
def test_merged_and_unmerged_adapters_give_one_loss_and_gradient(params, adapters, config):
    """Of the model's own parameters, too; those of an adapter come through its merged kernel."""
    base, mine, batch = laid_out(params, config), laid_out(adapters, config), make_batch()

    def of(combine):
        loss = lambda base, mine: mean_loss(combine(base, mine, EVERYWHERE), config, batch)  # noqa: E731
        return jax.device_get(jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(base, mine))

    unmerged, gradients = of(with_adapters)
    merged, expected = of(partial(merge_adapters, dtype="float32"))
    np.testing.assert_allclose(unmerged, merged, rtol=1e-5)
    assert_gradients_equal(gradients, expected)
    assert abs(unmerged - mean_loss(base, config, batch)) > 0.01


def test_merging_adds_the_scaled_product(params, adapters):
    kernel = "decoder", "layers_1", "self_attn", "o_proj", "kernel"
    merged = flatten_dict(merge_adapters(params, adapters, EVERYWHERE, "float32"))
    a, b = (np.asarray(flatten_dict(adapters)[*kernel[:-1], name]) for name in ("lora_a", "lora_b"))
    expected = flatten_dict(params)[kernel] + 5 / 3 * np.einsum("hdr,ro->hdo", a, b)
    np.testing.assert_allclose(merged[kernel], expected, atol=1e-6)
    halved = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    for dtype in ("bfloat16", "float32"):
        kept = flatten_dict(merge_adapters(halved, adapters, EVERYWHERE, dtype))
        assert kept[kernel].dtype == dtype and kept["decoder", "norm", "scale"].dtype == jnp.bfloat16


def test_new_adapters_change_nothing_and_are_the_same_in_both_layouts(params):
    made, stacked = (made_from(config, EVERYWHERE, jax.random.key(2)) for config in (CONFIG, SCANNED))
    jax.tree.map(np.testing.assert_array_equal, stack_layers(made), stacked)
    batch = make_batch()
    assert mean_loss(with_adapters(params, made, EVERYWHERE), CONFIG, batch) == mean_loss(params, CONFIG, batch)
    flat = flatten_dict(made)
    kernels = [path for path in flatten_dict(params) if path[-1] == "kernel"]
    assert len(flat) == 2 * len(kernels)
    for *module, _ in kernels:
        a = np.asarray(flat[*module, "lora_a"])
        bound = (a.size / EVERYWHERE.rank) ** -0.5
        assert 0.8 * bound < np.abs(a).max() <= bound, module
    assert len({float(jnp.sum(a)) for path, a in flat.items() if path[-1] == "lora_a"}) == len(kernels)


@cache
def prepare(config, lora=EVERYWHERE, mesh=ALONE):
    rules = ShardingRules()
    config = replace(config, rules=rules) if mesh.size > 1 else config
    return preparation.prepare(config, make_sft_loss(config), OPTIMIZER, 10, mesh, rules, ROWS, "cpu", lora, seed=7)


def train(params, config=CONFIG, steps=2, mesh=ALONE, checkpoints=None):
    """(state, losses) of so many more updates on one batch, each of them saved."""
    prepared = prepare(config, mesh=mesh)
    batch = make_batch(*row_shards(mesh, ShardingRules()))
    shardings = {name: prepared.shardings.params[name] for name in params}
    losses = []
    with jax.set_mesh(mesh):
        base = jax.device_put(laid_out(params, config), shardings)
        state = jax.jit(prepared.create, out_shardings=prepared.shardings)(base)
        if checkpoints is not None and checkpoints.latest_step():
            state, losses = checkpoints.restore(state)
        for _ in range(steps):
            state, metrics = prepared.step(state, [batch])
            losses.append(float(metrics["loss"]))
            if checkpoints is not None:
                checkpoints.save(state, losses)
    return state, losses


@pytest.mark.parametrize("config", [CONFIG, SCANNED], ids=["unrolled", "scanned"])
def test_adapters_alone_are_trained(params, config):
    state, losses = train(params, config, steps=3)
    assert losses[2] < losses[1] < losses[0]
    base = {name: module for name, module in state.params.items() if name != ADAPTERS}
    jax.tree.map(np.testing.assert_array_equal, base, laid_out(params, config))
    before = flatten_dict(made_from(config, EVERYWHERE, jax.random.key(7)))
    for path, after in flatten_dict(state.params[ADAPTERS]).items():
        assert np.any(after != before[path]), path
    moments = [path for path, leaf in jax.tree_util.tree_flatten_with_path(state.opt_state)[0] if leaf.ndim]
    assert len(moments) == 2 * len(before)
    assert all(f"['{ADAPTERS}']" in jax.tree_util.keystr(path) for path in moments)


def test_no_gradient_of_a_frozen_kernel_is_computed():
    """An update of the decoder's adapters goes back through its activations alone, and not into the tower."""

    def flops(lora):
        prepared = prepare(CONFIG, lora)
        return prepared.step.trace(prepared.shapes, make_batch()).lower().cost_analysis()["flops"]

    encode = vision_flops(CONFIG.vision, ROWS * 16, 16)
    decode = decoder_flops(CONFIG.text, np.arange(LENGTH, LENGTH - ROWS // 2, -1).repeat(2))
    patches = 2 * ROWS * 16 * CONFIG.vision.patch_dim * CONFIG.vision.hidden_size  # have no gradient anyway
    assert flops(None) - flops(LoraOptions(rank=1)) > 0.9 * (2 * encode - patches + decode)


def lora_b_of(tree):
    return {path: leaf for path, leaf in flatten_dict(tree).items() if path[-1] == "lora_b"}


@needs_eight
@pytest.mark.parametrize(
    ("options", "config"),
    [(MeshOptions(data=1, fsdp=8), SCANNED), (MeshOptions(data=2, fsdp=2, tensor=2), CONFIG)],
    ids=["fsdp-scanned", "data-fsdp-tensor"],
)
def test_eight_devices_train_as_one(params, options, config):
    alone, expected = train(params)
    mesh = make_mesh(options, jax.devices()[:8])
    state, losses = train(params, config, mesh=mesh)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    flat = flatten_dict(state.params[ADAPTERS])
    for path, found in flatten_dict(laid_out(jax.device_get(alone.params[ADAPTERS]), config)).items():
        np.testing.assert_allclose(found, jax.device_get(flat[path]), atol=2e-3, err_msg=str(path))
    moments = [
        train(params, of, steps=1, mesh=on)[0].opt_state[1].mu[ADAPTERS] for of, on in ((CONFIG, ALONE), (config, mesh))
    ]
    of_one, of_eight = map(lora_b_of, (laid_out(jax.device_get(moments[0]), config), moments[1]))
    assert_gradients_equal(of_eight, of_one)  # a tenth of the clipped gradient; that of lora_a is still zero
    layer = "layers" if config.scan_layers else "layers_0"
    kernel = state.params["decoder"][layer]["mlp"]["gate_proj"]["kernel"].sharding.spec
    a, b = (flat["decoder", layer, "mlp", "gate_proj", name].sharding.spec for name in ("lora_a", "lora_b"))
    assert (a[-2], b[-1]) == tuple(kernel[-2:]) and "fsdp" in kernel


def test_checkpoints_hold_adapters_alone_and_resume_to_the_bit(params, tmp_path):
    with Checkpoints(tmp_path / "whole", modules=(ADAPTERS,)) as checkpoints:
        expected = train(params, SCANNED, steps=4, checkpoints=checkpoints)
    for _ in range(2):
        with Checkpoints(tmp_path / "parts", modules=(ADAPTERS,)) as checkpoints:
            found = train(params, SCANNED, steps=2, checkpoints=checkpoints)
    assert found[1] == expected[1]
    jax.tree.map(np.testing.assert_array_equal, found[0], expected[0])
    with Checkpoints(tmp_path / "full") as checkpoints:
        checkpoints.save(expected[0], None)
    sizes = [sum(f.stat().st_size for f in (tmp_path / n).rglob("*") if f.is_file()) for n in ("parts", "full")]
    assert sizes[0] / 2 < 0.5 * sizes[1]  # two steps are kept


def test_a_checkpoint_of_adapters_is_no_model(params, adapters, tmp_path):
    with Checkpoints(tmp_path / "steps", modules=(ADAPTERS,)) as checkpoints:
        checkpoints.save(TrainState(jnp.int32(1), {ADAPTERS: adapters, **params}, {}), None)
    write_json(tmp_path / "config.json", {})
    with pytest.raises(CheckpointError, match="holds adapters and no decoder: .* finish the run"):
        to_huggingface(tmp_path / "steps", tmp_path / "out", source_dir=tmp_path)


def test_targets_are_named_alike_in_both_layouts():
    options = LoraOptions(targets=("decoder/layers_*/self_attn/[qv]_proj", "merger/fc?"))
    expected = {("merger", "fc1"), ("merger", "fc2")}
    for config, layers in ((CONFIG, ("layers_0", "layers_1")), (SCANNED, ("layers",))):
        made = flatten_dict(shapes_of(config, options))
        attention = {("decoder", layer, "self_attn", name) for layer in layers for name in ("q_proj", "v_proj")}
        assert {path[:-1] for path in made} == attention | expected
        assert adapted_modules(config, options) == ("merger", "decoder")
    one_layer = LoraOptions(targets=("decoder/layers_1/mlp/*",))
    assert len(flatten_dict(shapes_of(CONFIG, one_layer))) == 6
    with pytest.raises(ConfigError, match=r"take some layers of decoder.layers.mlp.* name all of them with layers_\*"):
        init_adapters(SCANNED, one_layer, jax.random.key(0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "lora.rank = 0 must be at least 1"),
        ({"alpha": 0.0}, "lora.alpha = 0.0 must be a positive number"),
        ({"alpha": float("nan")}, "lora.alpha = nan"),
        ({"targets": ()}, "lora.targets is empty"),
        ({"targets": ("*", "decoder/layer_*/q_proj")}, r"'decoder/layer_\*/q_proj' matches .* decoder/layers_\*/"),
        ({"targets": ("decoder/embed",)}, "'decoder/embed' matches no projection"),
    ],
)
def test_impossible_adapters_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        init_adapters(CONFIG, LoraOptions(**options), jax.random.key(0))


@pytest.mark.parametrize(
    "changes", [{"freeze": ("vision",)}, {"learning_rates": {"decoder": 2.0}}, {"rule": "muon"}], ids=str
)
def test_optimizer_options_without_effect_are_refused(changes):
    (name,) = changes
    with pytest.raises(ConfigError, match=f"optimizer.{name} .*lora"):
        preparation.prepare(
            CONFIG,
            make_sft_loss(CONFIG),
            replace(OPTIMIZER, **changes),
            10,
            ALONE,
            ShardingRules(),
            ROWS,
            "cpu",
            LoraOptions(),
        )


def test_flops_of_adapters():
    base, lengths = ("vision", "merger", "decoder"), np.array([10, 20])
    tower, decoder = vision_flops(CONFIG.vision, 64, 16), decoder_flops(CONFIG.text, lengths)
    count = partial(update_flops, CONFIG, lengths, 64, 16, base)
    np.testing.assert_allclose(count(("decoder",)), tower + 2 * decoder)
    np.testing.assert_allclose(count(("vision", "decoder")), 2 * tower + 2 * decoder)
