"""Decoding over the cache draws what full forward passes would draw, and ends where it should."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from jvlmm.data.batch import BatchOptions, collate
from jvlmm.data.example import Example, Media
from jvlmm.models import qwen2_5_vl
from jvlmm.rollout import generate as module
from jvlmm.rollout.generate import cut_at_stop, generate
from jvlmm.rollout.sampling import SamplingOptions, banned_tokens, row_keys

BATCH = BatchOptions(batch_size=4, length_buckets=(64, 128))
GREEDY = SamplingOptions(max_tokens=64)
MIXED = (
    Example("text", "What is red?", "", "text"),
    Example("video", "What moves?", "", "text", (Media("video", "1.mp4"),)),
    Example("both", "<image> or <video>?", "", "text", (Media("image", "2.png"), Media("video", "3.mp4"))),
)


@pytest.fixture(scope="module")
def prompts(processor):
    return [processor.prompt(example) for example in MIXED]


@pytest.fixture(scope="module")
def banned(config, tokenizer):
    return banned_tokens(config, tokenizer.length)


@pytest.fixture(scope="module")
def batch(prompts, config):
    return collate(prompts, BATCH, config)


@pytest.fixture(scope="module")
def reference(params, without_eos, prompts, batch):
    """completions int32 [3, C] -> float32 [3, C, V]: what full forward passes over prompt and completion predict."""

    @jax.jit
    def forward(tokens, positions, segment_ids, visual_index, vision):
        features = qwen2_5_vl.encode_vision(params, without_eos, vision)
        hidden = qwen2_5_vl.forward(params, without_eos, tokens, positions, segment_ids, visual_index, features)
        return qwen2_5_vl.logits(params, without_eos, hidden)

    def predict(completions):
        count = completions.shape[1]
        widths = [(0, 0), (0, count)]
        tokens, segment_ids = np.pad(batch.tokens, widths), np.pad(batch.segment_ids, widths)
        positions = np.pad(batch.positions, [(0, 0), *widths])
        for row, prompt in enumerate(prompts):
            ours = slice(prompt.length, prompt.length + count)
            tokens[row, ours], segment_ids[row, ours] = completions[row], 1
            positions[row, :, ours] = prompt.next_position + np.arange(count)
        visual_index = np.pad(batch.visual_index, widths, constant_values=-1)
        logits = forward(tokens, positions, segment_ids, visual_index, batch.vision)
        return np.stack([logits[row, p.length - 1 : p.length - 1 + count] for row, p in enumerate(prompts)])

    return predict


def log_probs_of(logits, tokens):
    return np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), tokens[..., None], axis=-1)[..., 0]


def test_greedy_decoding_of_mixed_rows_is_the_argmax_of_full_forwards(params, without_eos, batch, banned, reference):
    result = generate(params, without_eos, batch, GREEDY, row_keys(0, range(4)), banned)
    np.testing.assert_array_equal(result.lengths, [64, 64, 64, 0])
    np.testing.assert_array_equal(result.finished, [False, False, False, True])
    tokens = result.tokens[:3]
    assert len(np.unique(tokens)) > 30, "a model that repeats itself would prove little"
    assert not banned[tokens].any()
    logits = reference(tokens)
    np.testing.assert_array_equal(tokens, np.where(banned, -1e30, logits).argmax(-1))
    np.testing.assert_allclose(result.log_probs[:3], log_probs_of(logits, tokens), atol=1e-4)


def test_a_sampled_completion_depends_on_its_key_alone(params, without_eos, prompts, batch, banned, reference):
    """And its log-probabilities are those of the unfiltered model at that temperature."""
    options = SamplingOptions(max_tokens=64, temperature=1.5, top_p=0.95)
    together = generate(params, without_eos, batch, options, row_keys(5, [7, 8, 9, 0]), banned)
    expected = log_probs_of(reference(together.tokens[:3]) / options.temperature, together.tokens[:3])
    np.testing.assert_allclose(together.log_probs[:3], expected, atol=1e-4)
    swapped = collate([prompts[2], prompts[0], prompts[1]], BATCH, without_eos)
    apart = generate(params, without_eos, swapped, options, row_keys(5, [9, 7, 1, 1]), banned)
    np.testing.assert_array_equal(together.tokens[[2, 0]], apart.tokens[:2])
    assert (together.tokens[1] != apart.tokens[2]).any()
    again = generate(params, without_eos, batch, options, row_keys(6, [7, 8, 9, 0]), banned)
    assert (together.tokens[:3] != again.tokens[:3]).any(axis=1).all()


def test_rows_end_at_their_end_of_sequence_token(params, config, without_eos, batch, banned):
    """The first row ends at once, the second in the middle, the third nowhere; none disturbs another."""
    free = generate(params, without_eos, batch, GREEDY, row_keys(0, range(4)), banned)
    first = int(free.tokens[0, 0])
    second = next(int(t) for i, t in enumerate(free.tokens[1]) if i > 5 and t not in free.tokens[[0, 2]])
    ending = replace(config, tokens=replace(config.tokens, eos=(first, second)))
    assert first not in free.tokens[2]
    result = generate(params, ending, batch, GREEDY, row_keys(0, range(4)), banned)
    cut = min(np.flatnonzero(np.isin(free.tokens[1], (first, second)))) + 1
    np.testing.assert_array_equal(result.lengths, [1, cut, 64, 0])
    np.testing.assert_array_equal(result.finished, [True, True, False, True])
    for row, length in enumerate(result.lengths):
        np.testing.assert_array_equal(result.tokens[row, :length], free.tokens[row, :length])
        assert (result.tokens[row, length:] == config.tokens.pad).all()
        assert (result.log_probs[row, length:] == 0).all()


def test_one_token(params, without_eos, batch, banned):
    longer = generate(params, without_eos, batch, replace(GREEDY, max_tokens=33), row_keys(0, range(4)), banned)
    one = generate(params, without_eos, batch, SamplingOptions(max_tokens=1), row_keys(0, range(4)), banned)
    np.testing.assert_array_equal(one.tokens, longer.tokens[:, :1])


def test_a_batch_of_padding_draws_nothing(params, without_eos, batch, banned):
    empty = batch.replace(segment_ids=np.zeros_like(batch.segment_ids))
    result = generate(params, without_eos, empty, GREEDY, row_keys(0, range(4)), banned)
    assert (result.lengths == 0).all() and result.finished.all()
    assert (result.tokens == without_eos.tokens.pad).all()


@pytest.mark.parametrize("interval", [1, 7, 32])
def test_a_stop_string_ends_its_row_where_it_is_complete(
    params, without_eos, tokenizer, batch, banned, monkeypatch, interval
):
    monkeypatch.setattr(module, "STOP_CHECK_INTERVAL", interval)
    options = replace(GREEDY, max_tokens=40)
    keys = row_keys(0, range(4))
    readable = [tokenizer.decode([token]).isascii() for token in range(tokenizer.length)]
    banned = banned | ~np.pad(readable, (0, len(banned) - len(readable)))
    free = generate(params, without_eos, batch, options, keys, banned)
    texts = [tokenizer.decode(row) for row in free.tokens]
    stop = texts[1][11:14]  # spread over several tokens
    result = generate(params, without_eos, batch, replace(options, stop=(stop,)), keys, banned, tokenizer.decode)
    for row in range(3):
        length = result.lengths[row]
        np.testing.assert_array_equal(result.tokens[row, :length], free.tokens[row, :length])
        assert result.finished[row] == (stop in texts[row])
        if stop in texts[row]:
            assert stop in tokenizer.decode(free.tokens[row, :length])
            assert stop not in tokenizer.decode(free.tokens[row, : length - 1])
        else:
            assert length == 40
    assert result.finished[1]
    assert cut_at_stop(texts[1], (stop,)) == texts[1][: texts[1].index(stop)]


def test_text_is_cut_at_the_first_of_several_stop_strings():
    assert cut_at_stop("one two three", ("three", "two")) == "one "
    assert cut_at_stop("one", ("two",)) == "one"
    assert cut_at_stop("one", ()) == "one"


def test_lengths_and_seeds_of_one_bucket_share_a_program(params, without_eos, batch, banned):
    def run(**options):
        generate(params, without_eos, batch, SamplingOptions(**options), row_keys(0, range(4)), banned)

    run(max_tokens=33)
    compiled = module.start._cache_size(), module.decode_until._cache_size()
    run(max_tokens=64, seed=4)
    run(max_tokens=50)
    assert (module.start._cache_size(), module.decode_until._cache_size()) == compiled
