"""One row of a prompt and its completions learns what separate rows of prompt and completion learn."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import assert_gradients_equal

from jvlmm.data.batch import BatchOptions, collate
from jvlmm.data.example import Example, Media
from jvlmm.data.groups import Rollout, collate_groups, separate_rows
from jvlmm.models.qwen2_5_vl import stack_layers
from jvlmm.objectives.grpo import policy_loss
from jvlmm.objectives.profiles import PROFILES
from jvlmm.rollout.engine import Engine, RolloutOptions
from jvlmm.rollout.features import VisualFeatures
from jvlmm.rollout.sampling import SamplingOptions
from jvlmm.training.completions import group_log_probs, row_log_probs
from jvlmm.training.policy_loss import make_policy_loss

GROUP = 3
BATCH = BatchOptions(batch_size=4, length_buckets=(64, 128))
ROWS = replace(BATCH, batch_size=GROUP * BATCH.batch_size, length_buckets=(64, 128, 256))
QUESTIONS = {
    "text": Example("text", "What is red?", "", "text"),
    "image": Example("image", "What is it?", "", "text", (Media("image", "1.png"),)),
    "video": Example("video", "What moves?", "", "text", (Media("video", "2.mp4"),)),
    "both": Example("both", "<image> or <video>?", "", "text", (Media("image", "3.png"), Media("video", "4.mp4"))),
}


@pytest.fixture(scope="module")
def prompts(processor):
    return {name: processor.prompt(example) for name, example in QUESTIONS.items()}


@pytest.fixture(scope="module")
def model(config):
    """With a tower of one block."""
    return replace(config, vision=replace(config.vision, depth=1, fullatt_block_indexes=(0,)))


@pytest.fixture(scope="module")
def weights(params):
    return {**params, "vision": {name: part for name, part in params["vision"].items() if name != "blocks_1"}}


@pytest.fixture(scope="module")
def endless(model):
    """Ends on nothing."""
    return replace(model, tokens=replace(model.tokens, eos=(model.text.vocab_size - 1,)))


def draw_rollouts(number, seed=0, longest=20):
    """Ragged ones; the first group has a completion of one token."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, longest + 1, (number, GROUP))
    lengths[0, :2] = 1, longest
    return [[Rollout(rng.integers(0, 300, n), rng.normal(-3, 1, n), np.zeros(n), True) for n in row] for row in lengths]


def learnable(batch, prompts, seed=0):
    """With advantages, and log-probs of an older policy and of a reference."""
    rng = np.random.default_rng(seed)
    noisy = lambda: batch.sampler_log_probs + rng.normal(0, 0.1, batch.sampler_log_probs.shape).astype(np.float32)  # noqa: E731
    batch.advantages[: len(prompts)] = rng.normal(size=(len(prompts), GROUP))
    batch.prompt_weights[: len(prompts)] = rng.uniform(0.5, 2, len(prompts))
    return batch.replace(old_log_probs=noisy(), reference_log_probs=noisy())


def separate_loss(model, batch, rows, objective):
    """The loss of `make_policy_loss`, with log-probs from a row for each completion."""

    def loss(weights):
        log_probs, mask = row_log_probs(weights, model, rows, tile=32)
        count, places = batch.completion_mask.shape[1:]
        arranged = []
        for row, of_group in enumerate(np.asarray(batch.completion_mask)):
            for number, valid in enumerate(of_group):
                length, source = int(valid.sum()), row * count + number
                begin = int(batch.prompt_lengths[row]) - 1
                own = log_probs[source, begin : begin + length] if length else jnp.zeros(0)
                arranged.append(jnp.pad(own, (0, places - length)))
        log_probs = jnp.stack(arranged).reshape(batch.completion_mask.shape)
        total, count, _ = policy_loss(
            log_probs,
            batch.old_log_probs,
            batch.advantages,
            batch.completion_mask,
            objective,
            reference_log_probs=batch.reference_log_probs,
            sampler_log_probs=batch.sampler_log_probs,
            prompt_weights=batch.prompt_weights,
            rollout_mask=batch.rollout_mask,
        )
        return total / count, log_probs

    return loss


def shared_loss(model, batch, objective):
    def loss(weights):
        total, count, _ = make_policy_loss(model, objective, tile=32)(weights, batch)
        return total / count, group_log_probs(weights, model, batch, tile=32)

    return loss


def results(loss, weights):
    (value, log_probs), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(weights)
    return float(value), np.asarray(log_probs), gradients


@pytest.fixture(scope="module")
def everything(weights, model, prompts):
    """(batch in groups, loss, log-probs and gradients of separate rows) of all kinds of prompts, the tower trained."""
    chosen = [prompts[name] for name in ("text", "both", "video")]
    rollouts = draw_rollouts(len(chosen))
    patches = sum(len(p.pixels) for prompt in chosen for p in prompt.patches)
    exactly = replace(BATCH, patch_buckets=(patches,))
    batch = learnable(collate_groups(chosen, rollouts, exactly, model), chosen)
    flat = [row for p, of in zip(chosen, rollouts, strict=True) for row in separate_rows(p, of)]
    rows = collate(flat, replace(ROWS, patch_buckets=(GROUP * patches,)), model)
    assert len(rows.vision.pixels) == GROUP * len(batch.vision.pixels)
    return batch, *results(separate_loss(model, batch, rows, PROFILES["grpo"]), weights)


@pytest.mark.parametrize(
    ("scan", "remat"), [(False, "none"), (False, "minimal"), (True, "dots"), (True, "full"), (False, "offload")]
)
def test_every_gradient_is_that_of_separate_rows(weights, model, everything, scan, remat):
    batch, value, log_probs, gradients = everything
    if scan:
        weights, gradients = stack_layers(weights), stack_layers(gradients)
    model = replace(model, scan_layers=scan, remat=remat)
    found, found_log_probs, found_gradients = results(shared_loss(model, batch, PROFILES["grpo"]), weights)
    assert found == pytest.approx(value, rel=1e-5)
    np.testing.assert_allclose(found_log_probs, log_probs, atol=2e-5)
    assert set(found_gradients) == {"vision", "merger", "decoder"}
    assert_gradients_equal(found_gradients, gradients, rtol=1e-5)


@pytest.mark.parametrize("names", [("text",), ("image", "image")], ids=" ".join)
def test_prompts_of_one_kind(weights, model, prompts, names):
    chosen = [replace(prompts[name], id=f"{name}{k}") for k, name in enumerate(names)]
    rollouts = draw_rollouts(len(chosen), seed=1, longest=9)
    batch = learnable(collate_groups(chosen, rollouts, BATCH, model), chosen, seed=1)
    assert (batch.vision is None) == (names == ("text",))
    rows = collate([row for p, of in zip(chosen, rollouts, strict=True) for row in separate_rows(p, of)], ROWS, model)
    value, log_probs, gradients = results(separate_loss(model, batch, rows, PROFILES["gspo"]), weights)
    found, found_log_probs, found_gradients = results(shared_loss(model, batch, PROFILES["gspo"]), weights)
    assert found == pytest.approx(value, rel=1e-5)
    np.testing.assert_allclose(found_log_probs, log_probs, atol=2e-5)
    if names == ("text",):
        assert not any(np.any(x) for x in jax.tree.leaves((found_gradients["vision"], found_gradients["merger"])))
        found_gradients, gradients = found_gradients["decoder"], gradients["decoder"]
    assert_gradients_equal(found_gradients, gradients, rtol=1e-5)


def test_features_that_were_made_before_give_the_decoder_its_gradients(weights, model, prompts, everything):
    _, value, log_probs, gradients = everything
    chosen = [prompts[name] for name in ("text", "both", "video")]
    features = VisualFeatures(model, BATCH).of(weights, chosen)
    batch = learnable(collate_groups(chosen, draw_rollouts(3), BATCH, model, features), chosen)
    assert batch.vision is None
    found, found_log_probs, found_gradients = results(shared_loss(model, batch, PROFILES["grpo"]), weights)
    assert found == pytest.approx(value, rel=1e-5)
    np.testing.assert_allclose(found_log_probs, log_probs, atol=2e-5)
    assert_gradients_equal(found_gradients["decoder"], gradients["decoder"], rtol=1e-5)
    assert not any(np.any(x) for x in jax.tree.leaves((found_gradients["vision"], found_gradients["merger"])))


def test_scores_in_tiles_change_nothing(weights, model, everything, monkeypatch):
    """As with long prompts, whose scores do not exist all at one time."""
    monkeypatch.setattr("jvlmm.models.attention._DENSE_SCORES", 600)
    batch, value, _, gradients = everything
    found, _, found_gradients = results(shared_loss(model, batch, PROFILES["grpo"]), weights)
    assert found == pytest.approx(value, rel=1e-5)
    assert_gradients_equal(found_gradients, gradients, rtol=1e-5)


def test_sampler_and_trainer_agree_on_log_probabilities(weights, endless, tokenizer, prompts):
    """Decoding token by token over the shared cache, at a temperature, against one forward pass."""
    sampling = SamplingOptions(max_tokens=24, temperature=1.3, top_p=0.9)
    engine = Engine(endless, tokenizer, sampling, RolloutOptions(rows=2, slots=2), BATCH)
    chosen = list(prompts.values())
    features = VisualFeatures(endless, BATCH).of(weights, chosen)
    rollouts = engine.sample(weights, chosen, features, GROUP, seed=3)
    batch = collate_groups(chosen, rollouts, BATCH, endless)
    assert batch.completion_mask.sum() == len(chosen) * GROUP * 24
    log_probs = jax.jit(partial(group_log_probs, config=endless, temperature=1.3))(weights, batch=batch)
    np.testing.assert_allclose(log_probs, batch.sampler_log_probs, atol=2e-5)
