"""Examples in, responses out: order, failures, batching, meshes, and what is told of each response."""

import time
from dataclasses import replace

import jax
import pytest
from toy_model import needs_eight

from jvlmm.data.batch import BatchOptions
from jvlmm.data.example import Example, Media
from jvlmm.data.processor import Processor
from jvlmm.models.qwen2_5_vl import abstract_params
from jvlmm.rollout import generate as programs
from jvlmm.rollout.control import PLAIN
from jvlmm.rollout.generator import Generator
from jvlmm.rollout.sampling import SamplingOptions
from jvlmm.sharding.mesh import MeshOptions, make_mesh
from jvlmm.sharding.rules import ShardingRules, named_shardings
from jvlmm.test_time.vreason import LiteOptions, VReasonOptions
from jvlmm.test_time.vreason_controller import VReason

BATCH = BatchOptions(batch_size=3, length_buckets=(64, 128), patch_buckets=(192,), frame_patches=(16,))
SAMPLED = SamplingOptions(max_tokens=12, temperature=1.0, seed=3)


def ask(number, *files, question="What is red?"):
    media = tuple(Media("image" if name.endswith("png") else "video", name) for name in files)
    return Example(f"q{number}", question, "", "text", media)


@pytest.fixture(scope="module")
def generator(params, processor):
    return Generator(params, processor, SAMPLED, BATCH)


def test_order_failures_and_facts(generator, tokenizer):
    examples = [
        ask(0, "1.mp4"),
        ask(1),
        ask(2, "missing.mp4"),
        ask(3, "2.png", "3.mp4"),
        ask(4, question="word " * 80),
        ask(5, question=" "),
        ask(6, "bug.mp4"),
        ask(7, question="<video> where?"),
        ask(8, "4.png"),
    ]
    responses = generator.generate(examples)
    assert [r.id for r in responses] == [e.id for e in examples]
    errors = {r.id: r.error for r in responses if r.error is not None}
    assert set(errors) == {"q2", "q4", "q5", "q6", "q7"}
    for name, word in (("q2", "missing.mp4"), ("q4", "200"), ("q5", "empty"), ("q6", "a surprise"), ("q7", "<video>")):
        assert name in errors[name] and word in errors[name]
        assert "\n" not in errors[name]
    assert all(r.text == "" and r.tokens == () and not r.finished for r in responses if r.error is not None)
    video, text, both = responses[0], responses[1], responses[3]
    assert video.frames == ((0, 15, 30, 45),) and both.frames == ((0,), (0, 15, 30, 45)) and text.frames == ()
    assert (video.visual_tokens, text.visual_tokens, both.visual_tokens) == (8, 0, 12)
    assert video.text_tokens + video.visual_tokens == generator.processor.prompt(examples[0]).length
    for response in (video, text, both):
        assert 1 <= len(response.tokens) <= 12
        assert response.text == tokenizer.decode(response.tokens)
        assert response.finished == (response.tokens[-1] in generator.config.tokens.eos)
        assert response.latency_s > 0


def test_a_response_does_not_depend_on_the_batch_it_is_in(generator):
    examples = [ask(i, f"{i}.mp4") for i in range(4)]
    together = generator.generate(examples)
    alone = generator.generate(examples[2:3])[0]
    assert together[2].tokens == alone.tokens
    assert len({r.tokens for r in together}) == 4


@needs_eight
@pytest.mark.parametrize("control", [PLAIN, VReason(VReasonOptions(lr=0.1, k=1, lite=LiteOptions()))])
def test_on_a_mesh_the_answers_are_the_same(params, processor, control):
    rules, mesh = ShardingRules(vocab=()), make_mesh(MeshOptions(data=2, fsdp=2, tensor=2), jax.devices()[:8])
    shapes, logical = abstract_params(processor.config)
    sharded = jax.device_put(params, named_shardings(mesh, rules, logical, shapes))
    shape = replace(processor.config, rules=rules)
    on_mesh = Processor(processor.tokenizer, shape, processor.options, processor.decoder)
    batch = BatchOptions(8, (64, 128), (768,), (16,), shards=4)
    examples = [ask(i, f"{i}.mp4") if i % 3 else ask(i) for i in range(11)]
    found = Generator(sharded, on_mesh, SAMPLED, batch, control=control, mesh=mesh).generate(examples)
    expected = Generator(params, processor, SAMPLED, BATCH, control=control).generate(examples)
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours.tokens, ours.frames, ours.error) == (theirs.tokens, theirs.frames, None)
        assert ours.tokens and (ours.control is None) == (theirs.control is None)


def test_examples_of_one_id_keep_their_own_answers(params, processor):
    greedy = Generator(params, processor, SamplingOptions(max_tokens=12), BATCH)
    first, second = replace(ask(0, "1.mp4"), id="same"), replace(ask(0, question="Who? " * 9), id="same")
    both = greedy.generate([first, second, replace(ask(0, "missing.mp4"), id="same")])
    assert both[0].tokens == greedy.generate([first])[0].tokens
    assert both[1].tokens == greedy.generate([second])[0].tokens
    assert both[0].error is None and both[2].error is not None


def test_no_examples_no_responses(generator):
    assert generator.generate([]) == []


def test_short_batches_compile_nothing_new(generator):
    generator.generate([ask(i, "1.mp4") for i in range(3)])
    compiled = programs.start._cache_size(), programs.decode_until._cache_size()
    generator.generate([ask(i, "2.mp4") for i in range(4)])
    assert (programs.start._cache_size(), programs.decode_until._cache_size()) == compiled


def test_latency_is_without_compilation(params, processor):
    """The first of two batches of one shape compiles, and neither's rows are told of it."""
    fresh = Generator(params, processor, replace(SAMPLED, max_tokens=70), BATCH)
    begun = time.perf_counter()
    (first,) = fresh.generate([ask(0)])
    wall = time.perf_counter() - begun
    (second,) = fresh.generate([ask(1)])
    assert 0 < first.latency_s < wall / 2 and second.latency_s > 0


def test_text_ends_before_the_stop_string(params, processor, generator):
    free = generator.generate([ask(0)])[0]
    stop = free.text[3:5]
    stopping = Generator(params, processor, replace(SAMPLED, stop=(stop,)), BATCH)
    response = stopping.generate([ask(0)])[0]
    assert response.text == free.text[: free.text.index(stop)]
    assert response.finished
    assert response.tokens == free.tokens[: len(response.tokens)]
