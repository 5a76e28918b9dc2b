"""Completions drawn in slots that are refilled are those that would be drawn alone."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from jvlmm.data.batch import BatchOptions, collate, length_bucket
from jvlmm.data.example import Example, Media
from jvlmm.errors import ConfigError
from jvlmm.models.qwen2_5_vl import stack_layers
from jvlmm.rollout import engine as module
from jvlmm.rollout import groups
from jvlmm.rollout.engine import Engine, RolloutOptions
from jvlmm.rollout.features import VisualFeatures
from jvlmm.rollout.generate import generate
from jvlmm.rollout.sampling import SamplingOptions, banned_tokens, row_keys

BATCH = BatchOptions(batch_size=4, length_buckets=(96, 128))
WARM = SamplingOptions(max_tokens=21, temperature=1.2)  # in 32 columns
GROUP = 3
QUESTIONS = (
    Example("text", "What is red?", "", "text"),
    Example("video", "What moves?", "", "text", (Media("video", "1.mp4"),)),
    Example("both", "<image> or <video>?", "", "text", (Media("image", "2.png"), Media("video", "3.mp4"))),
    Example("more", "Is the circle red, or is it of another colour, and which?", "", "text"),
)


@pytest.fixture(scope="module")
def prompts(processor):
    found = [processor.prompt(example) for example in QUESTIONS]
    assert {length_bucket(prompt.length, BATCH) for prompt in found} == {96, 128}
    return found


@pytest.fixture(scope="module")
def features(params, config, prompts):
    return VisualFeatures(config, BATCH).of(params, prompts)


@pytest.fixture(scope="module")
def draw(params, without_eos, tokenizer, prompts, features):
    """Completions of some of the prompts: `draw(sampling, rows, slots, …) -> [[Rollout]]`."""

    def draw(sampling=WARM, rows=4, slots=GROUP, chosen=range(4), seed=1, config=without_eos, batch=BATCH, group=GROUP):
        engine = Engine(config, tokenizer, sampling, RolloutOptions(rows, slots), batch)
        arguments = [prompts[k] for k in chosen], [features[k] for k in chosen]
        weights = stack_layers(params) if config.scan_layers else params
        rollouts = engine.sample(weights, *arguments, group, seed)
        assert [len(of_prompt) for of_prompt in rollouts] == [group] * len(arguments[0])
        assert all(0 < value < 1000 for value in engine.seconds.values())
        return rollouts

    return draw


@pytest.fixture(scope="module")
def free(draw):
    """Completions that nothing ends but the limit, all prompts and samples at once."""
    return draw()


def assert_alike(found, expected):
    """Equal tokens, and log-probs and entropies but for rounding."""
    for ours, theirs in zip(found, expected, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(one.tokens, other.tokens)
            np.testing.assert_allclose(one.log_probs, other.log_probs, atol=2e-5)
            np.testing.assert_allclose(one.entropies, other.entropies, atol=2e-5)
            assert one.finished == other.finished


def test_completions_differ_and_run_to_the_limit(free, without_eos, tokenizer):
    every = [rollout for of_prompt in free for rollout in of_prompt]
    assert all(len(rollout.tokens) == 21 and not rollout.finished for rollout in every)
    assert len({tuple(rollout.tokens) for rollout in every}) == len(every)
    banned = banned_tokens(without_eos, tokenizer.length)
    assert not any(banned[rollout.tokens].any() for rollout in every)
    assert all((r.log_probs < 0).all() and (r.entropies > 0).all() for r in every)


@pytest.mark.parametrize(("rows", "slots"), [(1, 1), (2, 2)])
def test_samples_do_not_depend_on_rows_and_slots(draw, free, rows, slots):
    """With more prompts than rows, and more samples than slots."""
    assert_alike(draw(rows=rows, slots=slots), free)


def test_samples_do_not_depend_on_other_prompts(draw, free):
    assert_alike(draw(chosen=(3, 1)), [free[3], free[1]])
    more = draw(chosen=(0,), group=5)
    assert_alike([more[0][:GROUP]], free[:1])


def test_samples_do_not_depend_on_the_bucket_of_their_prompt(draw, free):
    assert_alike(draw(chosen=(0, 1), batch=replace(BATCH, length_buckets=(128,))), free[:2])


def test_scanned_layers_draw_the_same(draw, free, without_eos):
    assert_alike(draw(chosen=(0,), config=replace(without_eos, scan_layers=True)), free[:1])


def test_another_seed_draws_others(draw, free):
    other = draw(chosen=(0,), seed=2)
    assert all((ours.tokens != theirs.tokens).any() for ours, theirs in zip(other[0], free[0], strict=True))


def test_greedy_completions_are_those_of_generate(draw, params, without_eos, tokenizer, prompts):
    rollouts = draw(SamplingOptions(max_tokens=32), group=1)
    banned = banned_tokens(without_eos, tokenizer.length)
    batch = collate(prompts, BATCH, without_eos)
    expected = generate(params, without_eos, batch, SamplingOptions(max_tokens=32), row_keys(0, range(4)), banned)
    for row, (rollout,) in enumerate(rollouts):
        np.testing.assert_array_equal(rollout.tokens, expected.tokens[row])
        np.testing.assert_allclose(rollout.log_probs, expected.log_probs[row], atol=2e-5)


def ending(config, free):
    """A model that ends on tokens which stand early in some of the free completions, late or never in others."""
    eos = tuple({int(free[0][0].tokens[0]), int(free[1][1].tokens[7]), int(free[2][2].tokens[15])})
    return replace(config, tokens=replace(config.tokens, eos=eos))


@pytest.mark.parametrize(("rows", "slots"), [(4, 3), (2, 2)])
def test_completions_end_at_their_end_of_sequence_token(draw, free, without_eos, rows, slots):
    """Slots fall free at different times, and are refilled around the end of the columns; one ends with its first."""
    config = ending(without_eos, free)
    found = draw(config=config, rows=rows, slots=slots)
    lengths = []
    for ours, theirs in zip(found, free, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            ends = np.flatnonzero(np.isin(other.tokens, config.tokens.eos))
            length = ends[0] + 1 if len(ends) else 21
            np.testing.assert_array_equal(one.tokens, other.tokens[:length])
            np.testing.assert_allclose(one.log_probs, other.log_probs[:length], atol=2e-5)
            assert one.finished == bool(len(ends))
            lengths.append(length)
    assert lengths[0] == 1 and len(set(lengths)) > 3, lengths


@pytest.mark.parametrize("interval", [1, 8])
def test_a_stop_string_ends_its_completion_where_it_is_complete(draw, tokenizer, without_eos, monkeypatch, interval):
    monkeypatch.setattr(module, "STOP_CHECK_INTERVAL", interval)
    readable = [tokenizer.decode([token]).isascii() for token in range(tokenizer.length)]
    allowed = np.pad(readable, (0, without_eos.text.vocab_size - tokenizer.length))
    monkeypatch.setattr(module, "banned_tokens", lambda *of: banned_tokens(*of) | ~allowed)
    free = draw()
    texts = [[tokenizer.decode(rollout.tokens) for rollout in of_prompt] for of_prompt in free]
    stop = texts[1][1][9:11]
    stopped = draw(replace(WARM, stop=(stop,)), rows=2, slots=2)
    for ours, theirs, of_prompt in zip(stopped, free, texts, strict=True):
        for one, other, text in zip(ours, theirs, of_prompt, strict=True):
            np.testing.assert_array_equal(one.tokens, other.tokens[: len(one.tokens)])
            assert one.finished == (stop in text)
            if one.finished:
                assert stop in tokenizer.decode(one.tokens) and stop not in tokenizer.decode(one.tokens[:-1])
            else:
                assert len(one.tokens) == 21
    assert stopped[1][1].finished and not all(r.finished for of_prompt in stopped for r in of_prompt)


def test_the_numbers_of_prompts_share_programs(draw):
    """A bucket that holds three prompts one time and four the next is decoded by one program."""
    batch = replace(BATCH, length_buckets=(128,))
    draw(batch=batch)
    compiled = groups.decode._cache_size()
    draw(batch=batch, chosen=(0, 2, 1))
    draw(replace(WARM, max_tokens=30, seed=5), batch=batch)
    assert groups.decode._cache_size() == compiled


def test_impossible_options_are_refused():
    with pytest.raises(ConfigError, match="rollout.rows=0 must be at least 1"):
        RolloutOptions(rows=0)


def test_entropy_is_that_of_the_distribution():
    logits = np.log(np.array([[0.5, 0.25, 0.25], [1e-30, 1, 1e-30]], np.float32))
    np.testing.assert_allclose(jax.jit(groups.entropy)(logits), [1.5 * np.log(2), 0], atol=1e-6)
