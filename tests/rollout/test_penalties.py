"""Penalties against transformers and by hand, in both engines; a checkpoint's own sampling, read on request."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvlmm.data.batch import BatchOptions, collate
from jvlmm.data.example import Example, Media
from jvlmm.errors import CheckpointError, ConfigError
from jvlmm.models import qwen2_5_vl
from jvlmm.recipes.reinforcing import GRPO
from jvlmm.rollout.engine import Engine, RolloutOptions
from jvlmm.rollout.features import VisualFeatures
from jvlmm.rollout.generate import generate
from jvlmm.rollout.generation_config import checkpoint_sampling
from jvlmm.rollout.sampling import History, SamplingOptions, banned_tokens, penalize, row_keys, sample, tokens_seen

EXAMPLES = (
    Example("text", "What is red? What is red?", "", "text"),
    Example("video", "What moves?", "", "text", (Media("video", "1.mp4"),)),
)
PENALIZED = SamplingOptions(max_tokens=12, repetition_penalty=1.3, presence_penalty=0.4, frequency_penalty=0.7)


def history_of(prompt, completion, vocab_size):
    """Of one row each."""
    prompt, completion = (np.asarray(tokens, np.int32).reshape(1, -1) for tokens in (prompt, completion))
    seen = tokens_seen(jnp.asarray(prompt), jnp.ones(prompt.shape, bool), vocab_size)
    history = History(seen, jnp.zeros(seen.shape, jnp.int32))
    for token in completion[0]:
        history = history.with_drawn(jnp.array([token]), jnp.array([True]))
    return history


@pytest.mark.parametrize("penalty", [1.05, 1.3, 0.8])
def test_the_repetition_penalty_is_that_of_transformers(penalty):
    torch = pytest.importorskip("torch", reason="torch is not installed: penalties are not compared to transformers")
    from transformers import RepetitionPenaltyLogitsProcessor

    rng = np.random.default_rng(0)
    logits = rng.normal(size=(1, 40)).astype(np.float32) * 3
    prompt, completion = rng.integers(0, 40, 15), rng.integers(0, 40, 9)
    ids = torch.tensor(np.concatenate([prompt, completion]))[None]
    expected = RepetitionPenaltyLogitsProcessor(penalty)(ids, torch.tensor(logits)).numpy()
    found = penalize(logits, history_of(prompt, completion, 40), SamplingOptions(repetition_penalty=penalty))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert (expected != logits).sum() > 10


def test_presence_and_frequency_count_the_completion_alone():
    """Worked by hand: token 1 stands in the prompt, 2 once and 3 three times in the completion."""
    logits = jnp.array([[1.0, 2.0, 3.0, -1.0]])
    history = history_of([1, 1], [3, 2, 3, 3], 4)
    options = SamplingOptions(presence_penalty=0.5, frequency_penalty=0.25)
    np.testing.assert_allclose(penalize(logits, history, options), [[1.0, 2.0, 2.25, -2.25]])
    both = replace(options, repetition_penalty=2.0)  # repetition comes first, as in vLLM
    np.testing.assert_allclose(penalize(logits, history, both), [[1.0, 1.0, 0.75, -3.25]])
    negative = SamplingOptions(presence_penalty=-1.0)
    np.testing.assert_allclose(penalize(logits, history, negative), [[1.0, 2.0, 4.0, 0.0]])


def test_padding_is_not_seen_and_ended_rows_are_not_counted():
    seen = tokens_seen(jnp.array([[1, 2], [2, 0]]), jnp.array([[True, True], [True, False]]), 4)
    np.testing.assert_array_equal(seen, [[0, 1, 1, 0], [0, 0, 1, 0]])
    history = History(seen, jnp.zeros((2, 4), jnp.int32)).with_drawn(jnp.array([3, 3]), jnp.array([True, False]))
    np.testing.assert_array_equal(history.counts, [[0, 0, 0, 1], [0, 0, 0, 0]])


def test_log_probs_are_those_of_the_model_without_penalties():
    logits = jnp.array([[2.0, 1.9, 0.0]])
    history = history_of([0], [0], 3)
    options = SamplingOptions(presence_penalty=1.0)
    token, log_prob = sample(row_keys(0, [0]), logits, np.zeros(3, bool), options=options, history=history)
    assert token.tolist() == [1]
    np.testing.assert_allclose(log_prob, jax.nn.log_softmax(logits)[0, 1:2], rtol=1e-6)


@pytest.fixture(scope="module")
def prompts(processor):
    return [processor.prompt(example) for example in EXAMPLES]


@pytest.fixture(scope="module")
def expected(params, without_eos, prompts, tokenizer):
    """Greedy tokens by full forward passes, penalised in NumPy."""
    config, count = without_eos, PENALIZED.max_tokens
    batch = collate(prompts, BatchOptions(batch_size=2, length_buckets=(128,)), config)
    banned = banned_tokens(config, tokenizer.length)
    features = qwen2_5_vl.encode_vision(params, config, batch.vision)
    tokens, segments, positions = (np.array(x) for x in (batch.tokens, batch.segment_ids, batch.positions))
    forward = jax.jit(lambda *rows: qwen2_5_vl.logits(params, config, qwen2_5_vl.forward(params, config, *rows)))
    drawn = [[], []]
    for step in range(count):
        logits = np.array(forward(tokens, positions, segments, batch.visual_index, features))
        for row, prompt in enumerate(prompts):
            at = prompt.length + step
            scores = logits[row, at - 1]
            seen = np.unique(tokens[row, :at])
            scores[seen] = np.where(scores[seen] < 0, scores[seen] * 1.3, scores[seen] / 1.3)
            for token in drawn[row]:
                scores[token] -= 0.7
            for token in set(drawn[row]):
                scores[token] -= 0.4
            drawn[row].append(int(np.where(banned, -np.inf, scores).argmax()))
            tokens[row, at], segments[row, at] = drawn[row][-1], 1
            positions[row, :, at] = prompt.next_position + step
    return drawn


def test_both_engines_penalise_alike(params, without_eos, prompts, tokenizer, expected):
    config = without_eos
    batch = collate(prompts, BatchOptions(batch_size=2, length_buckets=(128,)), config)
    banned = banned_tokens(config, tokenizer.length)
    found = generate(params, config, batch, PENALIZED, row_keys(0, range(2)), banned)
    assert found.tokens.tolist() == expected
    plain = generate(params, config, batch, SamplingOptions(max_tokens=12), row_keys(0, range(2)), banned)
    assert plain.tokens.tolist() != expected
    of_prompt = BatchOptions(batch_size=1, length_buckets=(128,))
    engine = Engine(config, tokenizer, PENALIZED, RolloutOptions(rows=2, slots=1), of_prompt)
    features = VisualFeatures(config, of_prompt).of(params, prompts)
    groups = engine.sample(params, prompts, features, group=2, seed=0)  # the second begins where the first has ended
    assert [[rollout.tokens.tolist() for rollout in group] for group in groups] == [[row, row] for row in expected]


def test_rollouts_that_are_learnt_from_take_no_penalties():
    for options, name in (
        ({"repetition_penalty": 1.05}, "sampling.repetition_penalty=1.05"),
        ({"presence_penalty": 1.0}, "sampling.presence_penalty=1.0"),
        ({"from_checkpoint": True}, "sampling.from_checkpoint=True"),
    ):
        with pytest.raises(ConfigError, match=f"{name}.*computes again"):
            GRPO(sampling=SamplingOptions(temperature=1.0, **options))


RELEASED = {"do_sample": True, "temperature": 1e-6, "repetition_penalty": 1.05, "top_p": 0.001, "top_k": 1}


def written(folder, **stated):
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 2], "pad_token_id": 2, **stated}))
    return folder


@pytest.mark.parametrize(
    ("stated", "asked", "explicit", "wanted"),
    [
        (RELEASED, {}, (), {"temperature": 1e-6, "repetition_penalty": 1.05, "top_p": 0.001, "top_k": 1}),
        ({"do_sample": True}, {}, (), {"temperature": 1.0, "top_k": 50}),
        ({"repetition_penalty": 1.05, "temperature": 0.7}, {}, (), {"repetition_penalty": 1.05}),  # greedy
        (RELEASED, {"temperature": 0.5, "top_k": 20}, (), RELEASED | {"temperature": 0.5, "top_k": 20}),
        (RELEASED, {}, ("temperature",), {"repetition_penalty": 1.05}),  # set to 0, which is its default
        (RELEASED, {}, ("top_k", "repetition_penalty"), {"temperature": 1e-6, "top_p": 0.001}),
        (
            {"do_sample": True, "min_p": 0.1, "top_k": 0},
            {"presence_penalty": 1.0},
            (),
            {"temperature": 1.0, "min_p": 0.1, "presence_penalty": 1.0},
        ),
    ],
)
def test_a_checkpoints_sampling_fills_what_was_not_set(tmp_path, stated, asked, explicit, wanted):
    asked = SamplingOptions(from_checkpoint=True, max_tokens=9, **asked)
    found = checkpoint_sampling(asked, written(tmp_path, **stated), explicit)
    assert found == SamplingOptions(max_tokens=9, **{k: v for k, v in wanted.items() if k != "do_sample"})
    untouched = SamplingOptions(top_k=3, temperature=1.0)
    assert checkpoint_sampling(untouched, tmp_path / "nowhere") is untouched


@pytest.mark.parametrize(
    ("stated", "words"),
    [
        ({"num_beams": 4}, "num_beams = 4 is not offered"),
        ({"no_repeat_ngram_size": 3}, "no_repeat_ngram_size = 3"),
        ({"do_sample": True, "temperature": -1}, "temperature=-1"),
        ({"repetition_penalty": "high"}, "generation_config.json"),
    ],
)
def test_what_a_checkpoint_asks_besides_is_refused(tmp_path, stated, words):
    with pytest.raises(CheckpointError, match=words):
        checkpoint_sampling(SamplingOptions(from_checkpoint=True), written(tmp_path, **stated))


def test_a_checkpoint_without_the_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="generation_config.json: no such file, which sampling.from_checkpoint"):
        checkpoint_sampling(SamplingOptions(from_checkpoint=True), tmp_path)
