"""Agreement with transformers in float32: logits, gradients, greedy tokens."""

from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="parity needs PyTorch, a test dependency")
pytest.importorskip("transformers", reason="parity needs transformers")

import qwen_reference as reference  # noqa: E402
from qwen_reference import Visual  # noqa: E402

from jvlmm.models import qwen2_5_vl as model  # noqa: E402
from jvlmm.models.vision_inputs import VisionBuckets  # noqa: E402

IMAGE, ODD_IMAGE = Visual("image", (1, 8, 8)), Visual("image", (1, 6, 10))
VIDEO, ODD_VIDEO = Visual("video", (3, 4, 8)), Visual("video", (2, 10, 6))
ROWS = {
    "text": [[17], [9], [23]],
    "image": [[4, IMAGE, 6]],
    "odd image": [[4, ODD_IMAGE, 6], [3, Visual("image", (1, 2, 14)), 9]],
    "several images": [[2, ODD_IMAGE, 3, IMAGE, 5, Visual("image", (1, 2, 2)), 1]],
    "video": [[4, VIDEO, 6]],
    "mixed": [[15], [3, ODD_VIDEO, 8], [1, IMAGE, 2, VIDEO, 5], [6, ODD_IMAGE, 2]],
}


@lru_cache
def models(tied):
    """(config, transformers' model, our parameters)."""
    config = reference.small_config(tied=tied)
    theirs = reference.torch_model(config)
    return config, theirs, reference.params_from_torch(dict(theirs.named_parameters()), config)


either_head = pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
BUCKETS = VisionBuckets((640,), frame_patches=(64,))  # one shape for all rows above, so that they compile once


def prepare(config, theirs, rows, **options):
    """The batch for both models: transformers' keyword arguments and positions, and our arrays."""
    batch = reference.make_batch(config, rows, pad_to=64)
    inputs = reference.torch_inputs(theirs, config, batch)
    positions, following = reference.rope_positions(theirs, inputs)
    vision = batch.vision_inputs(config, **options) if batch.visuals else None
    arrays = jax.tree.map(jnp.asarray, (batch.tokens, batch.segment_ids, batch.visual_index))
    return batch, inputs, positions, following, vision, arrays


@partial(jax.jit, static_argnums=1)
def hidden_of(params, config, arrays, positions, vision):
    tokens, segment_ids, visual_index = arrays
    features = None if vision is None else model.encode_vision(params, config, vision)
    return model.forward(params, config, tokens, positions, segment_ids, visual_index, features)


@pytest.mark.parametrize(("name", "tied"), [*((name, True) for name in ROWS), ("mixed", False)])
def test_logits_agree(name, tied):
    config, theirs, params = models(tied)
    rows = ROWS[name] + [[1]] * (4 - len(ROWS[name]))
    batch, inputs, positions, _, vision, arrays = prepare(config, theirs, rows, buckets=BUCKETS)
    hidden = hidden_of(params, config, arrays, positions, vision)
    ours = np.asarray(model.logits(params, config, hidden))
    with torch.no_grad():
        expected = theirs(**inputs).logits.numpy()
    real = batch.segment_ids > 0
    assert expected[real].std() > 0.5  # a comparison of logits of order one
    np.testing.assert_allclose(ours[real], expected[real], atol=1e-4, rtol=0)


@either_head
def test_gradients_agree(tied):
    config, theirs, params = models(tied)
    batch, inputs, positions, _, vision, arrays = prepare(config, theirs, ROWS["mixed"])
    targets = np.roll(batch.tokens, -1, axis=1)
    weights = (batch.segment_ids > 0) & (np.roll(batch.segment_ids, -1, axis=1) > 0)
    weights[:, -1] = False

    def loss(params):
        hidden = hidden_of(params, config, arrays, positions, vision)
        return -(model.token_log_probs(params, config, hidden, jnp.asarray(targets), 32) * weights).sum()

    value, gradients = jax.jit(jax.value_and_grad(loss))(params)
    theirs.zero_grad()
    log_probs = theirs(**inputs).logits.log_softmax(-1)
    chosen = log_probs.gather(-1, torch.from_numpy(targets.astype(np.int64))[..., None])[..., 0]
    expected = -(chosen * torch.from_numpy(weights)).sum()
    expected.backward()
    np.testing.assert_allclose(value, expected.item(), rtol=1e-5)

    named = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in theirs.named_parameters()}
    wanted = reference.params_from_torch(named, config)
    assert jax.tree.structure(gradients) == jax.tree.structure(wanted)
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        want = wanted
        for key in path:
            want = want[key.key]
        scale = np.abs(want).max()
        assert np.abs(gradient - want).max() <= 1e-3 * scale, jax.tree_util.keystr(path)
        assert scale > 0, jax.tree_util.keystr(path)


def greedy(params, config, arrays, positions, following, vision, steps):
    """Greedy tokens int32 [B, steps] of right-padded prompts."""
    tokens, segment_ids, visual_index = arrays
    features = None if vision is None else model.encode_vision(params, config, vision)
    hidden, cache = model.prefill(
        params, config, tokens, positions, segment_ids, visual_index, features, tokens.shape[1] + steps
    )
    last = segment_ids.sum(axis=1) - 1
    token = model.logits(params, config, hidden[jnp.arange(len(last)), last]).argmax(-1)

    def step(carry, offset):
        token, cache = carry
        place = jnp.broadcast_to((following + offset)[:, None], (len(last), 3))
        hidden, cache = model.decode_step(params, config, token, place, cache)
        return (model.logits(params, config, hidden).argmax(-1), cache), token

    _, tokens = jax.lax.scan(step, (token, cache), jnp.arange(steps))
    return tokens.T


@either_head
def test_64_greedy_tokens_are_identical_in_a_mixed_batch(tied):
    config, theirs, params = models(tied)
    rows = ROWS["mixed"]
    batch, inputs, positions, following, vision, arrays = prepare(config, theirs, rows)
    ours = jax.jit(greedy, static_argnums=(1, 6))(params, config, arrays, positions, following, vision, 64)
    start = 0
    for i, row in enumerate(rows):
        count = sum(isinstance(part, Visual) for part in row)
        alone = reference.torch_inputs(theirs, config, batch, slice(i, i + 1), slice(start, start + count))
        length = int(alone["attention_mask"].sum())
        for name in ("input_ids", "attention_mask", "mm_token_type_ids"):
            alone[name] = alone[name][:, :length]
        with torch.no_grad():
            expected = theirs.generate(**alone, do_sample=False, max_new_tokens=64)
        expected = expected[0, length:].numpy()
        assert len(expected) == 64
        assert len(set(expected.tolist())) > 4
        np.testing.assert_array_equal(ours[i], expected)
        start += count


@pytest.mark.parametrize("size", [(4, 8), (6, 10)])
def test_padding_to_buckets_and_folding_agree_too(size):
    config, theirs, params = models(True)
    rows = [[3, Visual("video", (2, *size)), 8], [2, Visual("image", (1, *size)), 4]]
    buckets = VisionBuckets((64, 256))
    for options in ({"fold": True}, {"buckets": buckets}, {"buckets": buckets, "fold": True}):
        batch, inputs, positions, _, vision, arrays = prepare(config, theirs, rows, **options)
        assert (vision.windows.index is None) == ("fold" in options)
        ours = model.logits(params, config, hidden_of(params, config, arrays, positions, vision))
        with torch.no_grad():
            expected = theirs(**inputs).logits.numpy()
        real = batch.segment_ids > 0
        np.testing.assert_allclose(np.asarray(ours)[real], expected[real], atol=1e-4, rtol=0)
