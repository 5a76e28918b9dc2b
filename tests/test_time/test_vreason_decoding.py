"""V-Reason inside the decode loop: what it leaves alone, what it changes, and what it reports."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toy_model import needs_eight

from jvlmm.data.batch import BatchOptions, collate
from jvlmm.data.example import Example, Media
from jvlmm.errors import ConfigError
from jvlmm.models import qwen2_5_vl
from jvlmm.models.cache import GroupCache
from jvlmm.rollout.control import PLAIN, Prompts
from jvlmm.rollout.generate import generate, start, traced_options
from jvlmm.rollout.sampling import SamplingOptions, banned_tokens, row_keys
from jvlmm.sharding.mesh import MeshOptions, make_mesh
from jvlmm.sharding.rules import ShardingRules, named_shardings
from jvlmm.test_time import vreason
from jvlmm.test_time.vreason import LiteOptions, VReasonOptions
from jvlmm.test_time.vreason_controller import VReason

BATCH = BatchOptions(batch_size=4, length_buckets=(64, 128))
GREEDY = SamplingOptions(max_tokens=32)
SWITCH = VReasonOptions(lr=0.05, trace=True)
EXAMPLES = (
    Example("text", "What is red?", "", "text"),
    Example("one", "What moves?", "", "text", (Media("video", "1.mp4"),)),
    Example("two", "<video> or <video>?", "", "text", (Media("video", "2.mp4"), Media("video", "3.mp4"))),
    Example("image", "And this?", "", "text", (Media("image", "4.png"),)),
)


@pytest.fixture(scope="module")
def prompts(processor):
    return [processor.prompt(example) for example in EXAMPLES]


@pytest.fixture(scope="module")
def batch(prompts, config):
    return collate(prompts, BATCH, config)


@pytest.fixture(scope="module")
def banned(config, tokenizer):
    return banned_tokens(config, tokenizer.length)


@pytest.fixture(scope="module")
def ask(params, without_eos, batch, banned):
    def ask(control, batch=batch, sampling=GREEDY, config=without_eos, params=params, seeds=(1, 2, 3, 4)):
        keys = row_keys(0, seeds[: len(batch.tokens)])
        return generate(params, config, batch, sampling, keys, banned, control=control)

    return ask


def opened(params, config, batch, banned, control):
    """(state after the prompt, the arguments of a decode step)."""
    state = start(params, config, batch, traced_options(GREEDY), row_keys(0, range(4)), banned, control)
    positions = jnp.broadcast_to(state.next_position[:, None], (len(state.tokens), 3))
    return state, (state.tokens[:, 0], positions)


@partial(jax.jit, static_argnums=(0, 2))
def run(control, params, config, step, cache, state):
    """One step of a controller."""
    return control.step(params, config, *step, cache, state)


def assert_same(found, expected, scan):
    """To the bit; with scanned layers, of which the last is compiled apart then, up to rounding."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 if scan else 0)


def stacked(params, config):
    return qwen2_5_vl.stack_layers(params), replace(config, scan_layers=True)


@pytest.mark.parametrize("scan", [False, True])
def test_an_opened_step_closed_again_is_a_step(params, without_eos, batch, banned, scan):
    params, config = stacked(params, without_eos) if scan else (params, without_eos)
    state, (tokens, positions) = opened(params, config, batch, banned, PLAIN)

    @jax.jit
    def both(cache):
        plain, after = qwen2_5_vl.decode_step(params, config, tokens, positions, cache)
        last, reopened = qwen2_5_vl.open_step(params, config, tokens, positions, cache)
        return plain, after, qwen2_5_vl.close_step(params, config, last.inputs, last.mixed), reopened, last.weights

    plain, after, closed, reopened, weights = both(state.cache)
    assert_same(plain, closed, scan)
    jax.tree.map(lambda a, b: assert_same(a, b, scan), after, reopened)
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)
    assert not np.asarray(weights)[~np.asarray(after.valid)[:, None].repeat(weights.shape[1], 1)].any()


def test_a_cache_of_groups_cannot_be_opened(params, config):
    none = GroupCache((), (), None, (), (), None, None)
    with pytest.raises(ConfigError, match="cannot show its attention over a GroupCache; decode over a KVCache"):
        qwen2_5_vl.open_step(params, config, None, None, none)


@pytest.mark.parametrize("scan", [False, True])
def test_without_updates_logits_and_tokens_are_those_of_plain_decoding(params, without_eos, batch, banned, ask, scan):
    params, config = stacked(params, without_eos) if scan else (params, without_eos)
    plain = ask(PLAIN, params=params, config=config)
    off = ask(VReason(VReasonOptions(mode="off", trace=True)), params=params, config=config)
    np.testing.assert_array_equal(plain.tokens, off.tokens)
    control = VReason().fitted(batch, config)
    state, step = opened(params, config, batch, banned, control)
    logits = run(control, params, config, step, state.cache, state.control)[0]
    expected = run(PLAIN, params, config, step, state.cache, ())[0]
    assert_same(logits, expected, scan)


def test_it_changes_rows_with_a_video_and_no_others(ask):
    plain, steered = ask(PLAIN), ask(VReason(replace(SWITCH, lr=1.0)))
    np.testing.assert_array_equal(steered.control["video_rows"], [0, 8, 16, 0])
    np.testing.assert_array_equal(plain.tokens[[0, 3]], steered.tokens[[0, 3]])
    assert (plain.tokens[[1, 2]] != steered.tokens[[1, 2]]).any()
    norms = steered.control["delta_norm"]
    assert not norms[[0, 3]].any() and (norms[[1, 2], 1:] > 0).all() and not norms[:, 0].any()
    assert not steered.control["skipped_updates"].any()


def test_the_cache_keeps_its_values_and_the_shifted_ones_their_norms(params, without_eos, batch, banned):
    control = VReason(replace(SWITCH, k=1, lr=1.0)).fitted(batch, without_eos)
    state, step = opened(params, without_eos, batch, banned, control)
    _, cache, after = run(control, params, without_eos, step, state.cache, state.control)
    plain = run(PLAIN, params, without_eos, step, state.cache, ())[1]
    jax.tree.map(np.testing.assert_array_equal, cache, plain)
    new = after.values + after.shift
    norms = [np.linalg.norm(np.asarray(x), axis=-1) for x in (after.values, new)]
    np.testing.assert_allclose(*norms, rtol=1e-4)
    assert np.abs(np.asarray(after.shift)).max() > 1e-2
    assert not np.asarray(after.delta)[~np.asarray(after.mask)[:, None].repeat(2, 1)].any()


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_an_update_is_the_gradient_of_the_loss_through_the_whole_model(params, without_eos, batch, banned, sign):
    """Autodiff of everything after the prompt, the shifted values written into the cache, with plain decode steps."""
    mode = "always_up" if sign > 0 else "always_down"
    control = VReason(replace(SWITCH, k=1, mode=mode), optax.sgd(1.0)).fitted(batch, without_eos)
    state, step = opened(params, without_eos, batch, banned, control)
    after = run(control, params, without_eos, step, state.cache, state.control)[2]
    rows = jnp.arange(4)[:, None]

    def loss(delta):
        new = vreason.preserved(state.control.values, delta)
        new = jnp.where(state.control.mask[:, None, :, None], new, 0)
        last = state.cache.values[-1].swapaxes(1, 2)
        old = jnp.where(state.control.mask[..., None, None], 0.0, last[rows, state.control.slots])
        last = last.at[rows, state.control.slots].set(new.swapaxes(1, 2) + old).swapaxes(1, 2)
        cache = state.cache.replace(values=(*state.cache.values[:-1], last))
        logits = PLAIN.step(params, without_eos, *step, cache, ())[0]
        return jax.vmap(vreason.switch_loss, (0, None))(logits, sign).sum()

    expected = jax.jit(jax.grad(loss))(state.control.delta)
    scale = float(jnp.abs(expected).max())
    np.testing.assert_allclose(-after.delta / scale, expected / scale, atol=2e-4)


@pytest.mark.parametrize(("mode", "direction"), [("always_down", -1), ("always_up", 1)])
def test_a_small_step_moves_the_entropy_of_the_same_token(params, without_eos, batch, banned, mode, direction):
    control = VReason(VReasonOptions(mode=mode, k=1), optax.sgd(1e-1)).fitted(batch, without_eos)
    again = replace(control, options=replace(control.options, resample_after_update=True))
    state, step = opened(params, without_eos, batch, banned, control)
    before, after = (run(of, params, without_eos, step, state.cache, state.control)[0] for of in (control, again))
    change = np.asarray(vreason.entropy_of(after) - vreason.entropy_of(before))
    assert (direction * change[[1, 2]] > 0).all() and (change[[0, 3]] == 0).all()


@pytest.mark.parametrize(("mode", "lite"), [("switch", None), ("random", LiteOptions())])
def test_a_batch_of_two_is_two_batches_of_one(ask, prompts, without_eos, mode, lite):
    """Of different video lengths, and drawn at a temperature."""
    options = replace(SWITCH, lite=lite, mode=mode)
    sampling = SamplingOptions(max_tokens=32, temperature=0.7)
    together = ask(
        VReason(options), collate(prompts[1:3], replace(BATCH, batch_size=2), without_eos), sampling, seeds=(7, 8)
    )
    for row in range(2):
        one = collate(prompts[row + 1 : row + 2], replace(BATCH, batch_size=1), without_eos)
        alone = ask(VReason(options), one, sampling, seeds=(7 + row,))
        np.testing.assert_array_equal(alone.tokens[0], together.tokens[row])
        for name, values in alone.control.items():
            np.testing.assert_allclose(values[0], together.control[name][row], rtol=2e-3, atol=2e-3, err_msg=name)


def test_every_k_th_token_and_every_inner_step_counts(ask):
    norms = ask(VReason(replace(SWITCH, k=3))).control["delta_norm"][1]
    assert [bool(a != b) for a, b in zip(norms[1:], norms[:-1], strict=True)] == [n % 3 == 2 for n in range(1, 32)]
    one = VReason(replace(SWITCH, k=1), optax.sgd(0.1))
    two = VReason(replace(SWITCH, k=1, inner_steps=2), optax.sgd(0.1))
    assert ask(two).control["delta_norm"][1, 1] > ask(one).control["delta_norm"][1, 1] > 0


def test_traces_tell_the_switch(ask):
    control = ask(VReason(SWITCH)).control
    ema, peak, alpha = (control[name] for name in ("ema", "peak", "alpha"))
    expected = [control["entropy"][:, 0]]
    for entropy in control["entropy"].T[1:]:
        expected.append(SWITCH.beta * expected[-1] + (1 - SWITCH.beta) * entropy)
    np.testing.assert_allclose(ema, np.stack(expected, 1), rtol=1e-4)
    np.testing.assert_allclose(peak, np.maximum.accumulate(ema, axis=1))
    np.testing.assert_array_equal(alpha, np.where(ema < peak, -1, 1))
    attention, has_video = control["video_attention"], control["video_rows"] > 0
    assert not attention[:, 0].any() and not attention[~has_video].any()
    assert has_video.any() and (attention[has_video, 1:] > 0).all() and (attention < 1).all()


def test_steps_that_are_not_finite_are_skipped_and_counted(ask):
    plain, wild = ask(PLAIN), ask(VReason(replace(SWITCH, lr=1e38, k=1)))
    np.testing.assert_array_equal(plain.tokens, wild.tokens)
    np.testing.assert_array_equal(wild.control["skipped_updates"], [0, 31, 31, 0])
    assert not wild.control["delta_norm"].any()


def test_below_the_floor_entropy_is_not_lowered(ask):
    floor = ask(VReason(replace(SWITCH, mode="always_down", min_entropy=100.0)))
    assert not floor.control["delta_norm"].any() and not floor.control["skipped_updates"].any()


def test_a_batch_without_a_video_is_decoded_plainly(ask, prompts, without_eos):
    batch = collate([prompts[0], prompts[3]], BATCH, without_eos)
    assert VReason(SWITCH).fitted(batch, without_eos) is PLAIN
    np.testing.assert_array_equal(ask(VReason(SWITCH), batch).tokens, ask(PLAIN, batch).tokens)


# --- Lite -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("options", [LiteOptions(), LiteOptions(0.3, "key"), LiteOptions(0.7, per_head=True)])
def test_lite_keeps_the_text_and_the_video_rows_of_high_norm(params, without_eos, batch, options, scan):
    params, config = stacked(params, without_eos) if scan else (params, without_eos)
    features = qwen2_5_vl.encode_vision(params, config, batch.vision)
    inputs = batch.tokens, batch.positions, batch.segment_ids, batch.visual_index
    hidden, kept = qwen2_5_vl.read_prompts(params, config, *inputs, features)
    control = VReason(VReasonOptions(lite=options)).fitted(batch, config)
    read = Prompts(batch.tokens, batch.segment_ids, kept, jnp.zeros((4, 8)), row_keys(0, range(4)))
    cache, state = control.begin(read, config, capacity=8)
    assert control.slots < batch.tokens.shape[1] and cache.valid.shape == (4, control.slots + 8)
    for row in range(4):
        video = np.flatnonzero(batch.tokens[row] == config.tokens.video)
        text = np.flatnonzero((batch.segment_ids[row] > 0) & (batch.tokens[row] != config.tokens.video))
        staying = len(video) - int(options.ratio * len(video))
        assert cache.valid[row].sum() == len(text) + staying and state.mask[row].sum() == staying
        for layer in range(config.text.num_layers):
            keys, values = (np.asarray(store[layer][row]) for store in kept)
            norms = np.linalg.norm(values if options.rank_by == "value" else keys, axis=-1)
            norms = norms if options.per_head else np.broadcast_to(norms.mean(0), norms.shape)
            for head in range(config.text.num_kv_heads):
                chosen = np.sort(video[np.argsort(-norms[head, video])[:staying]])
                expected = np.concatenate([text, chosen])
                for new, old in ((cache.keys, keys), (cache.values, values)):
                    np.testing.assert_array_equal(new[layer][row, head, : len(expected)], old[head, expected])


def test_lite_frees_half_of_the_bytes_of_the_video(params, config, processor, banned):
    videos = [replace(EXAMPLES[2], id=str(n)) for n in range(4)]
    batch = collate([processor.prompt(example) for example in videos], BATCH, config)
    count = int((batch.tokens[0] == config.tokens.video).sum())
    text = config.text
    row_bytes = 2 * text.num_layers * text.num_kv_heads * text.head_dim * 4
    control = VReason(VReasonOptions(lite=LiteOptions())).fitted(batch, config)
    state, _ = opened(params, config, batch, banned, control)
    report = control.report(state.control)
    assert (report["freed_mib"] * 2**20 >= 0.45 * count * row_bytes).all()
    assert control.slots < batch.tokens.shape[1]


def test_lite_with_text_alone_answers_as_ever(ask):
    plain, lite = ask(PLAIN), ask(VReason(VReasonOptions(mode="off", lite=LiteOptions())))
    np.testing.assert_array_equal(plain.tokens[[0, 3]], lite.tokens[[0, 3]])
    assert (lite.control["freed_mib"] > 0).tolist() == [False, True, True, False]


@needs_eight
def test_on_a_mesh_it_decodes_what_one_device_does(params, without_eos, ask):
    control = VReason(replace(SWITCH, lite=LiteOptions()))
    expected = ask(control)
    mesh = make_mesh(MeshOptions(data=1, fsdp=4, tensor=2))
    rules = ShardingRules(vocab=())
    axes = qwen2_5_vl.abstract_params(without_eos)[1]
    sharded = jax.device_put(params, named_shardings(mesh, rules, axes))
    with jax.set_mesh(mesh):
        found = ask(control, params=sharded, config=replace(without_eos, rules=rules))
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_allclose(found.control["entropy"], expected.control["entropy"], atol=2e-2)
