"""On eight simulated devices, which train on one mesh and sample on another, a step is that of one device."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from toy_model import needs_eight

from jvlmm.data.batch import BatchOptions
from jvlmm.data.example import Example, Media
from jvlmm.data.prompt_stream import Prompt
from jvlmm.errors import ConfigError
from jvlmm.judges import rules
from jvlmm.objectives.profiles import PROFILES
from jvlmm.rewards.rewarder import make_rewarder
from jvlmm.rewards.terms import RewardOptions, RewardTerm
from jvlmm.rollout.engine import Engine, RolloutOptions
from jvlmm.rollout.features import VisualFeatures
from jvlmm.rollout.sampling import SamplingOptions
from jvlmm.sharding.batches import row_shards
from jvlmm.sharding.mesh import MeshOptions, make_mesh
from jvlmm.sharding.rules import ShardingRules
from jvlmm.training.advantage_estimator import AdvantageEstimator
from jvlmm.training.experience import Gatherer, GroupOptions
from jvlmm.training.hindsight_writing import HindsightWriter
from jvlmm.training.lora import ADAPTERS, LoraOptions
from jvlmm.training.optimizer import OptimizerOptions
from jvlmm.training.policy import PolicyStep, UpdateOptions
from jvlmm.training.policy_preparation import PolicyMeshes, prepare_policy
from jvlmm.training.teaching import Teaching, TeachingOptions

pytestmark = needs_eight

RULES = ShardingRules(vocab=())  # of a number that no two devices divide
TRAINING, ROLLOUT = MeshOptions(fsdp=4, tensor=2, data=1), MeshOptions(data=4, tensor=2)
OF_PROMPT = BatchOptions(1, (128,), (128,))
SAMPLING = SamplingOptions(max_tokens=6, temperature=1.0)
LORA = LoraOptions(rank=2, alpha=4, targets=("decoder/layers_*/self_attn/q_proj", "decoder/layers_*/mlp/down_proj"))
QUESTIONS = (
    Example("video", "What moves?", "A", "mcq", (Media("video", "1.mp4"),), options=("red", "blue")),
    Example("text", "What is red?", "A", "mcq", options=("it", "not")),
    Example("image", "Is it?", "A", "mcq", (Media("image", "2.png"),), options=("red", "blue")),
    Example("both", "<image> or <video>?", "A", "text", (Media("image", "2.png"), Media("video", "1.mp4"))),
    Example("other", "Which?", "A", "mcq", options=("one", "two")),
    Example("more", "Which of them?", "A", "mcq", (Media("video", "3.mp4"),), options=("one", "two")),
    Example("seven", "Which one?", "A", "mcq", options=("one", "two")),
    Example("eight", "And now?", "A", "mcq", options=("one", "two")),
)
REWARD = """
def vowels(completion, example):
    return sum(map(completion.count, "aeiou e")) / 10 + len(completion) / 100
"""


@pytest.fixture(scope="module")
def prompts(processor):
    return [Prompt(example, processor.prompt(example)) for example in QUESTIONS]


@pytest.fixture(scope="module")
def rewarder(tmp_path_factory):
    path = tmp_path_factory.mktemp("rewards") / "rewards.py"
    path.write_text(REWARD)
    return make_rewarder(RewardOptions(None, (RewardTerm("vowels", f"{path}:vowels"),)))


@pytest.fixture(scope="module")
def take(params, config, tokenizer, prompts, rewarder):
    """`take(training mesh, rollout mesh, …) -> ((parameters, teacher) after a step, metrics, groups)`, as NumPy."""

    def take(training, rollout, lora=None, freeze=(), taught=None):
        meshes = PolicyMeshes(training, rollout, RULES)
        optimizer = OptimizerOptions(1e-3, schedule="constant", freeze=freeze)
        layout, lesson = (meshes, 8, "cpu", lora), taught and taught.lesson
        policy = prepare_policy(config, config, PROFILES["grpo"], optimizer, 10, *layout, lesson=lesson)
        shapes = replace(OF_PROMPT, batch_size=8, patch_buckets=(8 * 128,))
        shards, parts = row_shards(training, RULES)
        engine = Engine(
            policy.rollout_config, tokenizer, SAMPLING, RolloutOptions(rows=4, slots=2), OF_PROMPT, mesh=rollout
        )
        features = VisualFeatures(policy.rollout_config, OF_PROMPT, mesh=rollout)
        recorded = []
        shapes = replace(shapes, shards=shards, parts=parts)
        tower = not freeze and lora is None
        teaching = taught and Teaching(
            options=taught,
            config=policy.config,
            batch=shapes,
            hindsight=HindsightWriter(taught.hindsight, tokenizer, lambda params: rules.judge),
            trained=policy.trained,
            policy=policy.policy,
            place=policy.place,
            tower_trained=tower,
        )
        kept = jax.device_put(params, policy.base(policy.training.shardings.params))
        step = PolicyStep(
            config=policy.config,
            objective=PROFILES["grpo"],
            update=policy.training.step,
            options=UpdateOptions(rows=8),
            batch=shapes,
            gatherer=Gatherer(engine, features, rewarder, GroupOptions(size=3)),
            estimator=AdvantageEstimator(PROFILES["grpo"]),
            more=lambda: pytest.fail("no further prompts are wanted"),
            seed=0,
            steps=10,
            sampler=policy.sampler,
            policy=policy.policy,
            reference=policy.base if lora else lambda _: kept,
            place=policy.place,
            tower_trained=tower,
            record=lambda number, groups: recorded.extend(groups),
            teaching=teaching,
        )
        with jax.set_mesh(training):
            state = jax.jit(policy.training.create, out_shardings=policy.training.shardings)(kept)
            state, metrics = step(step.state_at(state, 0), [prompts])
        assert features.encoded == 3  # of five media two are seen before
        return jax.device_get((state.params, state.teacher)), metrics, recorded

    return take


@pytest.fixture(scope="module")
def one_device(take):
    mesh = make_mesh(MeshOptions(), jax.devices()[:1])
    return lambda **options: take(mesh, mesh, **options)


TAUGHT = TeachingOptions(decay=0.5, list_every=0)
CASES = [{}, {"freeze": ("vision", "merger"), "taught": TAUGHT}, {"lora": LORA, "taught": TAUGHT}]


@pytest.mark.parametrize("options", CASES, ids=["all is trained", "decoder and teacher", "adapters and teacher"])
def test_a_step_is_that_of_one_device(take, one_device, params, options):
    (weights, teacher), metrics, groups = take(make_mesh(TRAINING), make_mesh(ROLLOUT), **options)
    (expected, its_teacher), of_one, drawn = one_device(**options)
    assert [group.texts for group in groups] == [group.texts for group in drawn]
    for ours, theirs in zip(groups, drawn, strict=True):
        for one, other in zip(ours.rollouts, theirs.rollouts, strict=True):
            np.testing.assert_array_equal(one.tokens, other.tokens)
            np.testing.assert_allclose(one.log_probs, other.log_probs, atol=2e-5)
    figures = ["loss", "grad_norm", "kl", "sampler_gap", "reward", "entropy"]
    if "taught" in options:
        figures += ["visd/gap", "visd/weight", "visd/clipped", "visd/among_best"]
        assert metrics["visd/gap_abs"] > 1e-3 and teacher is not None
    for name in figures:
        assert metrics[name] == pytest.approx(of_one[name], rel=1e-4, abs=2e-6), name
    assert metrics["sampler_gap"] < 1e-5 and metrics["grad_norm"] > 1e-3
    moved = {
        name for name in params if any((a != b).any() for a, b in zip(*leaves(weights, params, name), strict=True))
    }
    assert moved == (set() if "lora" in options else set(params) - set(options.get("freeze", ())))
    if "lora" in options:
        assert all((x != 0).any() for x in jax.tree.leaves(weights[ADAPTERS])), "B begins at 0"
    pairs = (weights, teacher), (expected, its_teacher)
    for ours, theirs in zip(*map(jax.tree.leaves, pairs), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-4)  # a fifth of an update of Adam, where a gradient is 0


def leaves(left, right, name):
    return jax.tree.leaves(left[name]), jax.tree.leaves(right[name])


def test_rows_that_readers_do_not_divide_are_refused(config, tokenizer):
    mesh = make_mesh(ROLLOUT)
    with pytest.raises(ConfigError, match=r"rollout.rows=6 do not divide over the 4 groups.*rollout.mesh"):
        Engine(replace(config, rules=RULES), tokenizer, SAMPLING, RolloutOptions(rows=6), OF_PROMPT, mesh=mesh)
