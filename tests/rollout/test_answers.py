"""Answers of an engine are those of the generator: the same texts, and the same facts of each prompt."""

from dataclasses import replace

import jax
import pytest
from toy_model import needs_eight

from jvlmm.data.batch import BatchOptions
from jvlmm.data.example import Example, Media
from jvlmm.rollout.answers import Answers
from jvlmm.rollout.engine import Engine, RolloutOptions
from jvlmm.rollout.features import VisualFeatures
from jvlmm.rollout.generator import Generator
from jvlmm.rollout.sampling import SamplingOptions
from jvlmm.sharding.mesh import MeshOptions, make_mesh
from jvlmm.sharding.rules import ShardingRules

BATCH = BatchOptions(batch_size=2, length_buckets=(96, 128))
SAMPLING = SamplingOptions(max_tokens=8)
EXAMPLES = (
    Example("text", "What is red?", "", "text"),
    Example("video", "What moves?", "", "text", (Media("video", "1.mp4"),)),
    Example("lost", "What moves?", "", "text", (Media("video", "lost.mp4"),)),
    Example("both", "<image> or <video>?", "", "text", (Media("image", "2.png"), Media("video", "3.mp4"))),
    Example("long", "What? " * 200, "", "text"),
    Example("again", "Is it red?", "", "text", (Media("video", "1.mp4"),)),
)


@pytest.fixture(scope="module")
def asked(params, config, processor):
    """`asked(mesh) -> {index: Response}`."""

    def ask(mesh=None):
        shape = replace(config, rules=ShardingRules(vocab=())) if mesh else config
        engine = Engine(shape, processor.tokenizer, SAMPLING, RolloutOptions(rows=4, slots=1), BATCH, mesh=mesh)
        features = VisualFeatures(shape, replace(BATCH, batch_size=1), mesh=mesh)
        return dict(Answers(params, processor, engine, features).stream(EXAMPLES))

    return ask


def without_clock(response):
    return replace(response, latency_s=0.0)


def test_they_are_those_of_the_generator(asked, params, processor):
    expected = Generator(params, processor, SAMPLING, BATCH).generate(EXAMPLES)
    found = asked()
    assert sorted(found) == list(range(len(EXAMPLES)))
    for number, theirs in enumerate(expected):
        assert without_clock(found[number]) == without_clock(theirs)
        assert (found[number].latency_s > 0) == (theirs.error is None)
    assert [bool(found[number].error) for number in range(6)] == [False, False, True, False, True, False]


@needs_eight
def test_on_a_mesh_they_are_the_same(asked):
    mesh = make_mesh(MeshOptions(data=4, tensor=2), jax.devices()[:8])
    found, expected = asked(mesh), asked()
    assert {n: without_clock(r) for n, r in found.items()} == {n: without_clock(r) for n, r in expected.items()}
