"""The model agrees with itself: scanned and unrolled, cached and not, padded and not, remat or not."""

import dataclasses
from functools import partial
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import qwen_reference as reference
from qwen_reference import Visual

from jvlmm.models import qwen2_5_vl as model
from jvlmm.models.presets import PRESETS
from jvlmm.models.remat import Remat
from jvlmm.models.vision_inputs import VisionBuckets

ROWS = [[11], [3, Visual("video", (2, 6, 10)), 4], [2, Visual("image", (1, 4, 4)), 9]]
LENGTH = 48


def random_positions(batch):
    """Distinct time, height and width ids, rising along the row."""
    steps = np.random.default_rng(1).integers(0, 3, (len(batch.tokens), 3, batch.tokens.shape[1]))
    return np.cumsum(steps, axis=-1).astype(np.int32)


@pytest.fixture(scope="module")
def setting():
    """(config, params, batch, positions)."""
    config = reference.small_config()
    params = reference.random_params(config)
    batch = reference.make_batch(config, ROWS, pad_to=LENGTH)
    return config, params, batch, random_positions(batch)


@partial(jax.jit, static_argnums=1)
def hidden_of(params, config, tokens, positions, segment_ids, visual_index, vision):
    features = model.encode_vision(params, config, vision)
    return model.forward(params, config, tokens, positions, segment_ids, visual_index, features)


@partial(jax.jit, static_argnums=1)
def loss_and_gradients(params, config, tokens, positions, segment_ids, visual_index, vision):
    def loss(params):
        arrays = (tokens, positions, segment_ids, visual_index, vision)
        hidden = hidden_of.__wrapped__(params, config, *arrays)
        log_probs = model.token_log_probs(params, config, hidden, tokens, tile=30)
        return jnp.sum(jnp.where(segment_ids > 0, log_probs, 0))

    return jax.value_and_grad(loss)(params)


def arrays_of(setting, **options):
    config, _, batch, positions = setting
    return batch.tokens, positions, batch.segment_ids, batch.visual_index, batch.vision_inputs(config, **options)


def assert_trees_close(actual, expected, rtol):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for (path, a), e in zip(jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected), strict=True):
        assert np.abs(a - e).max() <= rtol * (np.abs(e).max() + 1e-6), jax.tree_util.keystr(path)


@pytest.fixture(scope="module")
def unrolled(setting):
    """(loss, gradients) of layers one by one, every activation kept."""
    config, params, *_ = setting
    return loss_and_gradients(params, config, *arrays_of(setting))


@pytest.mark.parametrize("scan_layers", [False, True], ids=["unrolled", "scanned"])
@pytest.mark.parametrize("remat", get_args(Remat))
def test_neither_remat_nor_scanning_changes_loss_or_gradients(setting, unrolled, remat, scan_layers):
    config, params, *_ = setting
    config = dataclasses.replace(config, remat=remat, scan_layers=scan_layers, flatten_tokens=remat == "full")
    params = model.stack_layers(params) if scan_layers else params
    value, gradients = loss_and_gradients(params, config, *arrays_of(setting))
    np.testing.assert_allclose(value, unrolled[0], rtol=1e-6)
    assert_trees_close(model.unstack_layers(gradients) if scan_layers else gradients, unrolled[1], 1e-5)


def test_stacking_layers_can_be_undone(setting):
    config, params, *_ = setting
    stacked = model.stack_layers(params)
    scanned = dataclasses.replace(config, scan_layers=True)
    shapes, names = model.abstract_params(scanned)
    assert jax.tree.map(jnp.shape, stacked) == jax.tree.map(lambda x: x.shape, shapes)
    assert_trees_close(model.unstack_layers(stacked), params, 0)
    assert names["decoder"]["layers"]["mlp"]["up_proj"]["kernel"] == ("layers", "embed", "mlp")


def prefill(params, config, tokens, positions, segment_ids, visual_index, vision):
    features = model.encode_vision(params, config, vision)
    arrays = (tokens, positions, segment_ids, visual_index, features)
    return model.prefill(params, config, *arrays, cache_length=LENGTH + 4)


@pytest.mark.parametrize("scan_layers", [False, True])
def test_prefill_and_decoding_equal_the_full_forward(setting, scan_layers):
    config, params, batch, positions = setting
    config = dataclasses.replace(config, scan_layers=scan_layers)
    params = model.stack_layers(params) if scan_layers else params
    arrays = arrays_of(setting)
    lengths = batch.segment_ids.sum(axis=1)
    prompts = lengths - 4  # the last four tokens of each row are text, and are decoded one at a time
    whole = hidden_of(params, config, *arrays)
    prompt_segments = (np.arange(LENGTH) < prompts[:, None]).astype(np.int32)
    prompt = (batch.tokens, positions, prompt_segments, batch.visual_index, arrays[-1])
    hidden, cache = jax.jit(prefill, static_argnums=1)(params, config, *prompt)
    rows = np.arange(len(lengths))
    for i in range(prompts.max()):
        live = i < prompts
        np.testing.assert_allclose(hidden[live, i], whole[live, i], atol=1e-4)
    step = jax.jit(model.decode_step, static_argnums=1)
    for i in range(4):
        place = prompts + i
        state, cache = step(params, config, batch.tokens[rows, place], positions[rows, :, place], cache)
        np.testing.assert_allclose(state, whole[rows, place], atol=1e-4)
    assert int(cache.length) == LENGTH + 4


def test_a_cache_too_short_for_the_prompt_is_refused(setting):
    config, params, batch, positions = setting
    arrays = (batch.tokens, positions, batch.segment_ids, None, None)
    with pytest.raises(ValueError, match="cache_length 10 is shorter"):
        jax.eval_shape(lambda: model.prefill(params, config, *arrays, cache_length=10))


def test_pads_are_inert(setting):
    config, params, batch, positions = setting
    tokens, _, segments, index, vision = arrays_of(setting, buckets=VisionBuckets((256,)))
    plain = hidden_of(params, config, tokens, positions, segments, index, vision)
    rng = np.random.default_rng(5)
    pad = segments == 0
    tokens = np.where(pad, rng.integers(0, 180, tokens.shape), tokens).astype(np.int32)
    index = np.where(pad, 3, index).astype(np.int32)
    positions = np.where(pad[:, None], 900, positions).astype(np.int32)
    used = sum(len(p) for p in batch.pixels)
    pixels, ids = vision.pixels.copy(), vision.rotary_ids.copy()
    pixels[used:], ids[used:] = rng.integers(0, 256, pixels[used:].shape), 77
    vision = vision.replace(pixels=pixels, rotary_ids=ids)
    noisy = hidden_of(params, config, tokens, positions, segments, index, vision)
    assert np.isfinite(noisy).all()
    np.testing.assert_array_equal(np.asarray(noisy)[~pad], np.asarray(plain)[~pad])
    assert np.abs(np.asarray(noisy)[pad] - np.asarray(plain)[pad]).max() > 1e-3  # the noise did arrive


def test_an_empty_row_stays_finite_and_has_no_gradient(setting):
    config, params, batch, positions = setting
    tokens, _, segments, index, vision = arrays_of(setting)
    segments = segments.copy()
    segments[1] = 0
    value, gradients = loss_and_gradients(params, config, tokens, positions, segments, index, vision)
    assert np.isfinite(value)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_packed_segments_do_not_see_each_other(setting):
    config, params, _, _ = setting
    rng = np.random.default_rng(2)
    tokens = rng.integers(0, 180, (1, 20)).astype(np.int32)
    places = np.broadcast_to(np.r_[0:9, 0:11].astype(np.int32), (1, 3, 20))
    segments = np.r_[np.full(9, 1), np.full(11, 2)].astype(np.int32)[None]
    run = jax.jit(model.forward, static_argnums=1)
    packed = run(params, config, tokens, places, segments)
    second_first = np.roll(tokens, -9, axis=1), np.roll(places, -9, axis=2), np.where(np.arange(20) < 11, 1, 0)[None]
    alone = run(params, config, *second_first[:2], second_first[2].astype(np.int32))
    np.testing.assert_allclose(packed[:, 9:], alone[:, :11], atol=1e-5)


@pytest.mark.parametrize("size", [(4, 8), (6, 10)])
def test_folded_equals_gathered(size):
    config = reference.small_config()
    params = reference.random_params(config)
    batch = reference.make_batch(config, [[Visual("video", (2, *size))], [Visual("image", (1, *size))]])
    gathered, folded = (batch.vision_inputs(config, fold=fold) for fold in (False, True))
    assert folded.windows.index is None and folded.frames.index is None and gathered.windows.index is not None
    encode = jax.jit(model.encode_vision, static_argnums=1)
    np.testing.assert_allclose(encode(params, config, gathered), encode(params, config, folded), atol=1e-5)


def test_bfloat16_runs_close_to_float32(setting):
    config, params, *_ = setting
    half = dataclasses.replace(config, dtype="bfloat16")
    exact, rounded = (hidden_of(params, c, *arrays_of(setting)) for c in (config, half))
    assert rounded.dtype == jnp.bfloat16
    real = setting[2].segment_ids > 0
    difference = np.asarray(rounded, np.float32)[real] - np.asarray(exact)[real]
    assert 0 < np.sqrt(np.mean(difference**2)) < 0.05


@pytest.mark.parametrize(("name", "billions"), [("3b", 3.75), ("7b", 8.29), ("32b", 33.45), ("72b", 73.41)])
def test_presets_have_the_released_numbers_of_parameters(name, billions):
    shapes, names = model.abstract_params(PRESETS[name])
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert round(count / 1e9, 2) == billions
    leaves = jax.tree.leaves(names, is_leaf=lambda leaf: isinstance(leaf, tuple))
    assert [len(names) for names in leaves] == [leaf.ndim for leaf in jax.tree.leaves(shapes)]


@pytest.mark.parametrize("name", ["tiny", "small"])
def test_small_presets_are_consistent(name):
    config = PRESETS[name]
    assert 2 * sum(config.text.mrope_section) == config.text.head_dim
    assert config.vision.out_hidden_size == config.text.hidden_size
    assert max(config.tokens.image, config.tokens.pad, *config.tokens.eos) < config.text.vocab_size
    shapes, _ = model.abstract_params(config)
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert {"tiny": 2.6e6, "small": 1e8}[name] < count < {"tiny": 3.0e6, "small": 1.3e8}[name]
