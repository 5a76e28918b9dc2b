"""A policy step on the small model: sample, score, update; what moves, what does not, and what is reported."""

import json
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import apart, assert_gradients_equal

from jvlmm.data.batch import BatchOptions
from jvlmm.data.example import Example, Media
from jvlmm.data.groups import Rollout, collate_groups
from jvlmm.data.prompt_stream import Prompt
from jvlmm.errors import ConfigError
from jvlmm.models import log_probs as vocabulary
from jvlmm.models.qwen2_5_vl import logits
from jvlmm.objectives.grpo import GRPOConfig
from jvlmm.objectives.profiles import PROFILES
from jvlmm.objectives.token_weights import group_divergence, token_weights
from jvlmm.rollout.engine import Engine, RolloutOptions
from jvlmm.rollout.features import VisualFeatures
from jvlmm.rollout.sampling import SamplingOptions
from jvlmm.training import completions
from jvlmm.training.advantage_estimator import AdvantageEstimator
from jvlmm.training.experience import Gatherer, GroupOptions
from jvlmm.training.frame_order import FrameOrder, shuffled_frames
from jvlmm.training.optimizer import OptimizerOptions, make_optimizer
from jvlmm.training.policy import PolicyStep, UpdateOptions
from jvlmm.training.policy_loss import make_policy_loss
from jvlmm.training.state import create_state
from jvlmm.training.step import make_train_step

BATCH = BatchOptions(batch_size=4, length_buckets=(128,))
SAMPLING = SamplingOptions(max_tokens=6, temperature=0.9)
ON_POLICY = GRPOConfig()
WITH_KL = PROFILES["grpo"]
THREE = GroupOptions(size=3)
TOWER = ("vision", "merger")
QUESTIONS = (
    Example("video", "What moves?", "A", "mcq", (Media("video", "1.mp4"),), options=("red", "blue"), question_type="v"),
    Example("text", "What is red?", "A", "mcq", options=("it", "not"), question_type="t"),
    Example("again", "Is it?", "A", "mcq", (Media("video", "1.mp4"),), options=("red", "blue"), question_type="v"),
    Example("other", "Which?", "A", "mcq", options=("one", "two"), question_type="t"),
)


@pytest.fixture(scope="module")
def model(config):
    """With one block in the tower and one layer in the decoder."""
    vision = replace(config.vision, depth=1, fullatt_block_indexes=(0,))
    return replace(config, vision=vision, text=replace(config.text, num_layers=1))


@pytest.fixture(scope="module")
def weights(params):
    second = ("blocks_1", "layers_1")
    return {name: {k: v for k, v in part.items() if k not in second} for name, part in params.items()}


@pytest.fixture(scope="module")
def prompts(processor):
    return [Prompt(example, processor.prompt(example)) for example in QUESTIONS]


@pytest.fixture(scope="module")
def make(weights, model, tokenizer, rewards):
    """Makes (state, step) with a rate large enough to see; `step.recorded` are the groups of each step."""
    programs = {}

    def make(objective=ON_POLICY, reward="vowels", group=THREE, freeze=TOWER, more=None, **options):
        options = UpdateOptions(**{"rows": 4, **options})
        optimizer = make_optimizer(OptimizerOptions(1e-3, schedule="constant", freeze=freeze), 10, tuple(weights))
        if (objective, freeze) not in programs:
            loss = make_policy_loss(model, objective, SAMPLING.temperature)
            programs[objective, freeze] = make_train_step(loss, optimizer)
        batch = replace(BATCH, batch_size=options.rows)
        features = VisualFeatures(model, batch, 1 << 20 if freeze else 0)
        engine = Engine(model, tokenizer, SAMPLING, RolloutOptions(rows=4, slots=4), BATCH)
        recorded = []
        step = PolicyStep(
            config=model,
            objective=objective,
            update=programs[objective, freeze],
            options=options,
            batch=batch,
            gatherer=Gatherer(engine, features, rewards(reward), group),
            estimator=AdvantageEstimator(objective),
            more=more or (lambda: pytest.fail("no further prompts are wanted")),
            seed=0,
            steps=10,
            reference=(lambda _: weights) if objective.beta else None,
            tower_trained=not freeze,
            record=lambda number, groups: recorded.append((number, groups)),
        )
        step.recorded = recorded
        return create_state(weights, optimizer), step

    return make


def identical(left, right):
    pairs = zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(
    "options", [{"freeze": ()}, {"rows": 2, "updates": 2, "epochs": 2}], ids=["once", "four updates"]
)
def test_without_rewards_parameters_do_not_move(make, weights, prompts, options):
    state, step = make(reward="nothing", **options)
    for number in (1, 2):
        state, metrics = step(state, [prompts])
        assert int(state.step) == number
    assert identical(state.params, weights)
    assert metrics["equal_groups"] == 1 and metrics["reward"] == 0 and metrics["grad_norm"] == 0


@pytest.fixture(scope="module")
def whole(make, prompts):
    state, step = make(freeze=())
    state, metrics = step(state, [prompts])
    return state, metrics, step.recorded


def test_a_step_moves_every_module_and_reports_itself(whole, weights, prompts):
    state, metrics, recorded = whole
    assert all(apart(state.params[name], weights[name]) > 1e-5 for name in weights)
    assert metrics["sampler_gap"] < 1e-5 and abs(metrics["ratio"] - 1) < 1e-5
    assert metrics["clipped_low"] == metrics["clipped_high"] == 0 and "kl" not in metrics
    assert metrics["equal_groups"] == 0 and metrics["reward_std"] > 0 and metrics["entropy"] > 1
    assert metrics["learning_rate"] == pytest.approx(1e-3)
    for name in ("reward/vowels", "reward/vowels/v", "reward/vowels/t"):
        assert metrics[name] > 0, name
    for name in ("tower", "prefill", "decode_tokens", "reward", "update"):
        assert metrics[f"seconds/{name}"] >= 0, name
    ((number, groups),) = recorded
    assert number == 1 and [group.prompt for group in groups] == prompts
    lengths = [len(rollout.tokens) for group in groups for rollout in group.rollouts]
    assert metrics["sampled_tokens"] == metrics["tokens"] == sum(lengths)
    assert metrics["truncated"] == np.mean([not r.finished for group in groups for r in group.rollouts])
    lines = [line for group in groups for line in group.records(1)]
    assert len(lines) == 12 and lines[0]["reward"] == pytest.approx(lines[0]["parts"]["vowels"])
    assert [line["sample"] for line in lines[:3]] == [0, 1, 2]


@pytest.mark.parametrize("rows", [1, 3])
def test_microbatches_learn_what_the_whole_batch_learns(make, prompts, whole, rows):
    """Of prompts, whose last part may come short; the groups stay whole."""
    state, step = make(rows=rows, freeze=())
    state, metrics = step(state, [prompts])
    expected, figures, _ = whole
    assert metrics["loss"] == pytest.approx(figures["loss"], abs=1e-6)
    assert metrics["grad_norm"] == pytest.approx(figures["grad_norm"], rel=1e-4)
    moments, expected_moments = (jax.tree.leaves(s.opt_state) for s in (state, expected))
    for a, b in zip(moments, expected_moments, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 * max(1e-9, float(np.abs(b).max())))


def test_frozen_features_are_kept_and_the_tower_stays(make, prompts, weights):
    state, step = make()
    for _ in range(2):
        state, metrics = step(state, [prompts])
    assert identical([state.params[n] for n in ("vision", "merger")], [weights[n] for n in ("vision", "merger")])
    assert apart(state.params["decoder"], weights["decoder"]) > 1e-5
    features = step.gatherer.features
    assert features.encoded == 1 and features.asked == 4 and metrics["sampler_gap"] < 1e-5


def test_a_tower_that_is_trained_is_asked_again_in_every_step(make, prompts):
    state, step = make(freeze=())
    for _ in range(2):
        state, metrics = step(state, [prompts])
    assert step.gatherer.features.encoded == 2 and metrics["sampler_gap"] < 1e-5


def test_the_reference_is_where_the_policy_began(make, prompts):
    state, step = make(WITH_KL)
    state, first = step(state, [prompts])
    assert first["kl"] == 0
    state, second = step(state, [prompts])
    assert second["kl"] > 1e-4


def test_a_penalty_in_the_reward_is_an_advantage(make, prompts, weights):
    """With equal rewards the first step has no gradient, and later ones pull back."""
    state, step = make(replace(WITH_KL, kl_place="reward"), reward="nothing")
    state, first = step(state, [prompts])
    assert first["kl"] == 0 and identical(state.params, weights)
    moved = jax.tree.map(lambda x: x * 1.01, weights)
    state, second = step(state.replace(params=moved), [prompts])
    assert second["kl"] > 0 and second["grad_norm"] > 0 and second["equal_groups"] == 1


def test_several_updates_learn_from_what_the_old_policy_drew(make, prompts):
    """The second half is no longer on-policy; the second epoch less so."""
    state, step = make(replace(ON_POLICY, clip_low=1e-4, clip_high=1e-4), rows=2, updates=2, epochs=2)
    state, metrics = step(state, [prompts])
    assert int(state.step) == 1
    assert metrics["clipped_low"] + metrics["clipped_high"] > 0.1 and abs(metrics["ratio"] - 1) > 1e-5
    counts = [x for x in jax.tree.leaves(state.opt_state) if x.dtype == jnp.int32]
    assert counts and all(int(x) == 4 for x in counts)
    assert metrics["sampler_gap"] < 1e-5, "the old policy is the one that sampled"


def test_the_schedule_counts_updates(make, weights, model, prompts):
    state, step = make(rows=2, updates=2)
    optimizer = make_optimizer(OptimizerOptions(1e-3, schedule="linear", freeze=TOWER), 6, tuple(weights))
    step.update = make_train_step(make_policy_loss(model, ON_POLICY, SAMPLING.temperature), optimizer)
    state = create_state(weights, optimizer)
    rates = []
    for _ in range(3):
        state, metrics = step(state, [prompts])
        rates.append(metrics["learning_rate"])
    np.testing.assert_allclose(rates, 1e-3 * np.array([5.5, 3.5, 1.5]) / 6, rtol=1e-5)


def test_prompts_without_a_gradient_are_drawn_anew(make, prompts, rewards):
    """The first and the third have equal rewards; the second draw replaces them, and all that was drawn is listed."""

    class OnlyText:
        def __init__(self, inner):
            self.inner = inner

        def __call__(self, completions, examples):
            table = self.inner(completions, examples)
            has_media = np.array([bool(example.media) for example in examples])
            return replace(table, total=np.where(has_media, 0.0, table.total))

    further = [replace(prompts[1], example=replace(prompts[1].example, id="new")), prompts[0], prompts[0], prompts[0]]
    draws = []
    state, step = make(group=GroupOptions(size=3, resample_rounds=2), more=lambda: draws.append(1) or further)
    step.gatherer.rewarder = OnlyText(rewards("vowels"))
    state, metrics = step(state, [prompts])
    assert len(draws) == 2 and metrics["groups_drawn"] == 12 and metrics["equal_groups"] == pytest.approx(8 / 12)
    experience = step.gatherer.gather(state.params, prompts, step.more, 5)
    assert [group.informative for group in experience.groups] == [True] * 4
    assert len(experience.drawn) == 12 and [group.prompt for group in experience.drawn[:4]] == prompts
    first, second = (experience.drawn[k].rollouts[0].tokens for k in (5, 9))
    assert first.tolist() != second.tolist(), "every round draws anew"


def test_groups_remain_when_the_rounds_have_passed(make, prompts):
    state, step = make(reward="nothing", group=GroupOptions(size=2, resample_rounds=1), more=lambda: prompts)
    experience = step.gatherer.gather(state.params, prompts, step.more, 0)
    assert [group.prompt for group in experience.groups] == prompts and len(experience.drawn) == 8


def test_truncated_rollouts_are_not_learnt(make, prompts, weights):
    """Where all are, nothing is."""
    state, step = make(group=GroupOptions(size=3, skip_truncated=True))
    experience = step.gatherer.gather(weights, prompts, step.more, 7)
    batch = step._collated(experience.groups)
    np.testing.assert_array_equal(batch.truncated, [[not r.finished for r in g.rollouts] for g in experience.groups])
    assert batch.rollout_mask.all(), "they stay in the count"
    cut = tuple(replace(g, rollouts=tuple(replace(r, finished=False) for r in g.rollouts)) for g in experience.groups)
    step.gatherer.gather = lambda *_: replace(experience, groups=cut, drawn=cut)
    state, metrics = step(state, [prompts])
    assert metrics["tokens"] == 0 and metrics["loss"] == 0 and identical(state.params, weights)


def test_a_bonus_for_the_order_of_frames_is_a_part_of_its_own(make, prompts, weights):
    """All are correct with and without order, which Video-R1 rewards; texts have no part."""
    group = GroupOptions(size=3, frame_order=FrameOrder(shuffled=2, ratio=1.0, weight=0.25))
    state, step = make(reward="accuracy", group=group)
    experience = step.gatherer.gather(weights, prompts, step.more, 0)
    for row, of_group in enumerate(experience.groups):
        is_video = row in (0, 2)
        np.testing.assert_array_equal(of_group.parts["frame_order"], [0.25 if is_video else np.nan] * 3)
        np.testing.assert_array_equal(of_group.rewards, [0.25 * is_video] * 3)
    assert experience.metrics["reward/frame_order/v"] == 0.25 and "reward/frame_order/t" not in experience.metrics
    assert experience.metrics["reward"] == 0.125
    (line, *_) = experience.groups[0].records(1)
    assert line["reward"] == sum(line["parts"].values())


def test_frames_are_shuffled_and_nothing_else(prompts):
    sequence = prompts[0].sequence
    (ordered,) = sequence.patches
    for seed in range(8):
        shuffled = shuffled_frames(sequence, seed)
        (patches,) = shuffled.patches
        frames, expected = (sorted(map(bytes, np.split(p.pixels, p.grid[0]))) for p in (patches, ordered))
        assert frames == expected and patches.grid == ordered.grid
        if (patches.pixels != ordered.pixels).any():
            break
    else:
        pytest.fail("no seed shuffled the frames")
    assert shuffled.tokens is sequence.tokens and shuffled.positions is sequence.positions


def test_rewards_that_fail_are_counted_and_named(make, prompts):
    state, step = make(reward="failing")
    failures = []
    for _ in range(3):
        state, metrics = step(state, [prompts])
        failures.append(metrics["reward_failures"])
        assert metrics["reward_failures/failing"] == metrics["reward_failures"]
    assert sum(failures) == 3  # of 36 calls


def test_the_same_step_of_the_same_seed_is_the_same_to_the_bit(make, prompts, whole):
    state, step = make(freeze=())
    state, metrics = step(state, [prompts])
    assert identical(state, whole[0])
    same = {name: value for name, value in metrics.items() if not name.startswith("seconds/")}
    assert same.items() <= whole[1].items()
    later = make(freeze=())
    drawn = [group.texts for group in step.recorded[0][1]]
    state = later[0].replace(step=later[0].step + 1)
    later[1](state, [prompts])
    assert [group.texts for group in later[1].recorded[0][1]] != drawn, "steps draw anew"


@pytest.mark.parametrize("words", [2**15, 100], ids=["all words", "tiles of words"])
def test_weights_of_tokens_are_those_of_whole_distributions(weights, model, prompts, monkeypatch, words):
    """TW-GRPO: loss and gradients, though the logits exist tile by tile."""
    monkeypatch.setattr(vocabulary, "WORDS", words)
    objective = PROFILES["tw_grpo"]
    rng = np.random.default_rng(0)
    lengths = (3, 16, 9)
    rollouts = [[Rollout(rng.integers(0, 300, n), np.zeros(n), np.zeros(n), True) for n in lengths]] * 2
    batch = collate_groups([p.sequence for p in prompts[:2]], rollouts, BATCH, model)
    batch.advantages[:2] = rng.normal(size=(2, 3))
    batch = batch.replace(old_log_probs=rng.normal(-6, 0.3, batch.completion_mask.shape).astype(np.float32))

    def ours(weights):
        total, count, extras = make_policy_loss(model, objective, 0.7, tile=16)(weights, batch)
        return total / count, extras

    def by_hand(weights):
        before = completions._before_completions(weights, model, batch)
        every = jax.nn.log_softmax(logits(weights, model, before) / 0.7).reshape(*batch.completion_mask.shape, -1)
        divergence = group_divergence(every, batch.completion_mask, model.text.vocab_size)
        of_tokens = token_weights(divergence, batch.completion_mask, objective.token_weight)
        weighted = batch.replace(advantages=batch.advantages[..., None] * of_tokens)
        total, count, _ = make_policy_loss(model, replace(objective, token_weight=None), 0.7)(weights, weighted)
        return total / count, of_tokens

    (found, extras), gradients = jax.jit(jax.value_and_grad(ours, has_aux=True))(weights)
    (expected, of_tokens), expected_gradients = jax.jit(jax.value_and_grad(by_hand, has_aux=True))(weights)
    assert float(of_tokens.max()) == pytest.approx(1.7, rel=1e-3) and float(of_tokens[:2].std()) > 0.05
    assert float(found) == pytest.approx(float(expected), rel=1e-5)
    assert float(extras["token_weight_sum"]) == pytest.approx(
        float((of_tokens * batch.completion_mask).sum()), rel=1e-5
    )
    assert_gradients_equal(gradients, expected_gradients, rtol=2e-5)


def test_estimators_state_is_json_and_exact():
    estimator, again = (AdvantageEstimator(replace(PROFILES["ema_grpo"], difficulty=0.5)) for _ in range(2))
    rng = np.random.default_rng(0)
    tasks = ["a", "b"]
    first = estimator(rng.normal(size=(2, 4)), tasks)
    assert (first[1] == 1).all(), "nothing is usual yet"
    estimator(rng.normal(size=(2, 4)), tasks)
    again.set_state(json.loads(json.dumps(estimator.get_state())))
    rewards = rng.normal(size=(2, 4))
    for one, other in zip(estimator(rewards, tasks), again(rewards, tasks), strict=True):
        np.testing.assert_array_equal(one, other)
    assert (estimator(rewards, tasks)[1] != 1).all()


@pytest.mark.parametrize(
    ("make_options", "message"),
    [
        (partial(GroupOptions, size=1), "group.size=1: .*at least 2"),
        (partial(GroupOptions, resample_rounds=-1), "group.resample_rounds=-1"),
        (partial(UpdateOptions, epochs=0), "update.epochs=0 must be at least 1"),
        (partial(FrameOrder, "paper", ratio=0.8), "frame_order.ratio=0.8 has no effect"),
        (partial(FrameOrder, shuffled=0), "frame_order.shuffled=0"),
        (partial(FrameOrder, "both"), "frame_order.form='both' is unknown"),
    ],
)
def test_impossible_options_are_refused(make_options, message):
    with pytest.raises(ConfigError, match=message):
        make_options()


def test_a_response_of_the_example_takes_the_place_of_a_rollout(make, prompts, processor):
    """LUFFY's mixed policy: it is scored with the others, and no figure of the sampler knows it."""
    given = [replace(p, example=replace(p.example, response="red, A")) for p in prompts[:2]]
    given = [replace(p, response=processor.response(p.example)) for p in given] + prompts[2:]
    state, step = make(group=GroupOptions(size=3, offline=True), freeze=())
    before = state.params
    log_probs = jax.jit(partial(completions.group_log_probs, config=step.config, temperature=SAMPLING.temperature))
    state, metrics = step(jax.tree.map(jnp.array, state), [given])
    ((_, groups),) = step.recorded
    offline = [[rollout.offline for rollout in group.rollouts] for group in groups]
    assert offline == [[False, False, True]] * 2 + [[False] * 3] * 2
    assert groups[0].texts[-1].startswith("red, A") and groups[0].rollouts[-1].finished
    assert metrics["offline"] == pytest.approx(2 / 12) and metrics["sampler_gap"] < 1e-5
    assert metrics["reward_offline"] == pytest.approx(np.mean([group.rewards[-1] for group in groups[:2]]))
    assert metrics["response_tokens"] <= 6
    batch = collate_groups([p.sequence for p in given], [g.rollouts for g in groups], BATCH, step.config)
    old, new = (np.asarray(log_probs(params, batch=batch)) for params in (before, state.params))
    probabilities = np.exp(old[:2, -1][batch.completion_mask[:2, -1]])
    assert metrics["offline_probability"] == pytest.approx(probabilities.mean(), rel=1e-4)
    better = [row for row in range(2) if groups[row].rewards[-1] == groups[row].rewards.max()]
    assert better, "the response has most of what is rewarded"
    for row in better:
        assert (new - old)[row, -1].sum() > 0


def test_a_response_that_is_too_long_is_not_taken(make, prompts):
    long = [replace(p, response=np.zeros(7, np.int32)) for p in prompts]
    state, step = make(group=GroupOptions(size=3, offline=True))
    _, metrics = step(state, [long])
    assert "offline" not in metrics and len(step.recorded[0][1][0].rollouts) == 3
