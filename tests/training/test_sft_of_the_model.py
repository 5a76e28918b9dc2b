"""The real model under the supervised step: sharding, learning, freezing, FLOPs."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_model
from closeness import assert_gradients_equal

from jvlmm.data.batch import Batch, BatchOptions, collate
from jvlmm.data.positions import mrope_positions
from jvlmm.data.sequence import Sequence
from jvlmm.models.config import TextConfig
from jvlmm.models.qwen2_5_vl import abstract_params, forward, init_params, logits
from jvlmm.sharding.mesh import MeshOptions, make_mesh
from jvlmm.sharding.rules import ShardingRules, named_shardings
from jvlmm.training.flops import decoder_flops, model_flops, segment_lengths, vision_flops
from jvlmm.training.optimizer import OptimizerOptions, decay_mask, make_optimizer
from jvlmm.training.placement import batch_placement, state_shardings
from jvlmm.training.sft import make_sft_loss, next_token_targets
from jvlmm.training.state import create_state
from jvlmm.training.step import make_train_step
from jvlmm.video.clip import Patches

CONFIG = replace(toy_model.CONFIG, text=replace(toy_model.CONFIG.text, num_layers=1, tie_word_embeddings=True))
GRID = (1, 4, 4)
MEDIA = (1, 1, 2, 0, 1, 2, 1, 1)  # images in each row


def make_sequence(rng: np.random.Generator, length: int, media: int = 1) -> Sequence:
    tokens = rng.integers(0, 90, length).astype(np.int32)
    visual_index = np.full(length, -1, np.int32)
    for i in range(media):
        visual_index[1 + 5 * i : 5 + 5 * i] = np.arange(4 * i, 4 * i + 4)
    tokens[visual_index >= 0] = CONFIG.tokens.image
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), (3, length))
    pixels = [rng.integers(0, 256, (16, CONFIG.vision.patch_dim), np.uint8) for _ in range(media)]
    patches = tuple(Patches(p, GRID, 0.0, np.zeros(1), np.zeros(1, np.int64)) for p in pixels)
    return Sequence("x", tokens, positions, np.arange(length) >= length - 5, visual_index, patches, length)


def place_media(rng: np.random.Generator, *grids: tuple[int, int, int]) -> Sequence:
    """Text around media of odd sizes, at the positions of M-RoPE; loss on all text, to the first token and the last."""
    special, parts = CONFIG.tokens, [rng.integers(0, 90, 2)]
    for t, h, w in grids:
        placeholder = special.video if t > 1 else special.image
        parts += [
            [special.vision_start],
            [placeholder] * (t * h * w // 4),
            [special.vision_end],
            rng.integers(0, 90, 3),
        ]
    tokens = np.concatenate(parts).astype(np.int32)
    is_media = (tokens == special.image) | (tokens == special.video)
    positions, following = mrope_positions(tokens, grids, [0.7] * len(grids), special, CONFIG.vision)
    pixels = [rng.integers(0, 256, (t * h * w, CONFIG.vision.patch_dim), np.uint8) for t, h, w in grids]
    patches = [Patches(p, grid, 0.7, np.zeros(1), np.zeros(1, int)) for p, grid in zip(pixels, grids, strict=True)]
    index = np.where(is_media, np.cumsum(is_media) - 1, -1).astype(np.int32)
    return Sequence("x", tokens, positions, ~is_media, index, tuple(patches), following)


@pytest.fixture(scope="module")
def batch() -> Batch:
    rng = np.random.default_rng(0)
    rows = [make_sequence(rng, length, media) for length, media in zip(range(12, 20), MEDIA, strict=True)]
    options = BatchOptions(batch_size=8, length_buckets=(24,), patch_buckets=(160,), frame_patches=(16,))
    return collate(rows, options, CONFIG)


OPTIMIZER = make_optimizer(
    OptimizerOptions(learning_rate=3e-3, schedule="constant"), 100, ("vision", "merger", "decoder")
)


@pytest.fixture(scope="module")
def params():
    return jax.device_get(init_params(CONFIG, jax.random.key(0)))


@pytest.fixture(scope="module")
def step():
    return make_train_step(make_sft_loss(CONFIG, tile=64), OPTIMIZER)


def test_it_learns_a_batch_by_heart(batch, params, step):
    state, losses = create_state(jax.device_put(params), OPTIMIZER), []
    for _ in range(30):
        state, metrics = step(state, [batch])
        losses.append(float(metrics["loss"]))
    assert abs(losses[0] - np.log(96)) < 1 and losses[-1] < 0.3 * losses[0]
    assert metrics["loss_tokens"] == 5 * 8 and metrics["tokens"] == sum(range(12, 20))
    assert step.compiles == 1


def test_sharded_step_equals_unsharded(batch, params, step):
    if jax.device_count() < 8:
        pytest.skip(f"needs 8 (simulated) devices, found {jax.device_count()}")
    state, rules = create_state(jax.device_put(params), OPTIMIZER), ShardingRules()
    shapes, logical = abstract_params(CONFIG)
    mesh = make_mesh(MeshOptions(data=2, fsdp=2, tensor=2), jax.devices()[:8])
    shardings = state_shardings(state, named_shardings(mesh, rules, logical, shapes), mesh)
    place = batch_placement(mesh, rules, batch_size=8)
    sharded_step = make_train_step(make_sft_loss(CONFIG, tile=64), OPTIMIZER, shardings, place)
    actual, metrics = jax.device_get(sharded_step(jax.device_put(state, shardings), [batch]))
    expected, expected_metrics = jax.device_get(step(create_state(jax.device_put(params), OPTIMIZER), [batch]))
    for name in ("loss", "grad_norm", "tokens", "loss_tokens"):
        np.testing.assert_allclose(metrics[name], expected_metrics[name], rtol=1e-5, err_msg=name)

    # 0.1 · clipped gradient after one update
    assert_gradients_equal(actual.opt_state[1].mu, expected.opt_state[1].mu)


@pytest.mark.parametrize("scan_layers", [False, True])
def test_only_products_and_embeddings_decay(scan_layers):
    shapes, _ = abstract_params(replace(CONFIG, scan_layers=scan_layers))
    mask = jax.tree_util.tree_flatten_with_path(decay_mask(shapes))[0]
    decayed = {jax.tree_util.keystr(path[-1:], simple=True) for path, decays in mask if decays}
    kept = {jax.tree_util.keystr(path[-1:], simple=True) for path, decays in mask if not decays}
    assert decayed == {"kernel", "embedding"}
    assert kept == {"scale", "bias"}


def test_targets_stay_inside_their_row():
    tokens = jnp.array([[1, 2, 3, 4, 5, 0]])
    segments = jnp.array([[1, 1, 2, 2, 2, 0]])
    targets, mask = next_token_targets(tokens, segments, jnp.array([[True, True, True, True, True, True]]))
    assert np.array(targets)[np.array(mask)].tolist() == [2, 4, 5]
    assert np.array(mask).tolist() == [[True, False, True, True, False, False]]


ALIKE = [((1, 4, 6),)] * 6  # folds: attention without gathers
MIXED = [((3, 2, 6),), ((1, 10, 4), (2, 6, 10)), (), ((2, 4, 2),), ((1, 2, 2),), ((4, 2, 2), (1, 4, 4))]


@jax.jit
def loss_and_gradients(params, batch):
    def loss(params):
        total, count, extras = make_sft_loss(CONFIG, tile=64)(params, batch)
        return total, {"count": count, **extras}

    return jax.value_and_grad(loss, has_aux=True)(params)


@pytest.mark.parametrize(
    ("media", "changes"),
    [(MIXED, {}), (MIXED, {"shards": 2, "parts": 2}), (ALIKE, {"fold": True})],
    ids=["gathered", "shards", "folded"],
)
def test_packing_changes_neither_loss_nor_gradients(params, media, changes):
    """Samples in rows of their own, and the same ones three, one and two to a row."""
    rng = np.random.default_rng(1)
    sequences = [place_media(rng, *grids) for grids in media]
    options = BatchOptions(6, (128,), (960,), (64,), pack=True, **changes)
    packed = collate(sequences, options, CONFIG, rows=[0, 0, 0, 1, 3, 3])
    apart = collate(sequences, replace(options, shards=1, parts=1), CONFIG)
    assert packed.segment_ids.max(axis=1).tolist() == [3, 1, 0, 2, 0, 0]
    assert (packed.vision.frames.index is None) == options.fold
    assert model_flops(CONFIG, packed) == model_flops(CONFIG, apart)

    results = [jax.device_get(loss_and_gradients(params, of)) for of in (packed, apart)]
    ((total, sums), gradients), ((expected_total, expected_sums), expected_gradients) = results
    assert sums == expected_sums
    assert sums["count"] == sum(s.loss_mask[1:].sum() for s in sequences) and sums["places"] == 6 * 128
    np.testing.assert_allclose(total, expected_total, rtol=1e-6)

    assert_gradients_equal(gradients, expected_gradients)


def test_segment_lengths():
    ids = np.array([[1, 1, 2, 2, 2, 0], [1, 0, 0, 0, 0, 0]])
    assert sorted(segment_lengths(ids)) == [1, 2, 3]


def test_decoder_flops_against_the_compiler():
    """XLA counts the products of the unrolled program, and up to the whole square of causal attention."""
    length = 64
    shapes, _ = abstract_params(CONFIG)
    tokens = jax.ShapeDtypeStruct((1, length), jnp.int32)
    positions = jax.ShapeDtypeStruct((1, 3, length), jnp.int32)

    def program(params, tokens, positions):
        return logits(params, CONFIG, forward(params, CONFIG, tokens, positions, tokens))

    compiled = jax.jit(program).lower(shapes, tokens, positions).cost_analysis()["flops"]
    counted = decoder_flops(CONFIG.text, np.array([length]))
    other_half = CONFIG.text.num_layers * 4 * CONFIG.text.hidden_size * length * (length - 1) / 2
    assert 0.99 < compiled / counted < 1.05 + other_half / counted


def test_7b_costs_six_flops_per_parameter_and_token():
    text = TextConfig()
    matrices = 7.615e9 - text.vocab_size * text.hidden_size  # the embedding is looked up, not multiplied
    short = decoder_flops(text, np.ones(100, np.int64))
    assert abs(3 * short / (6 * matrices * 100) - 1) < 0.01


def test_freezing_saves_flops(batch):
    total = model_flops(CONFIG, batch)
    tower = vision_flops(CONFIG.vision, patches=9 * 16, frame_patches=16)
    decoder = decoder_flops(CONFIG.text, np.arange(12, 20))
    np.testing.assert_allclose(total, 3 * (tower + decoder))
    np.testing.assert_allclose(model_flops(CONFIG, batch, ("vision", "merger")), tower + 3 * decoder)
    np.testing.assert_allclose(model_flops(CONFIG, batch, ("decoder",)), 3 * tower + 2 * decoder)
