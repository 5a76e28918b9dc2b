"""A teacher with hindsight: what it reads, what the student makes of it, how it follows, and what is reported."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import apart

from jvlmm.data.batch import BatchOptions
from jvlmm.data.example import Example, Media
from jvlmm.data.groups import collate_groups
from jvlmm.data.hindsight import HEADER
from jvlmm.data.prompt_stream import Prompt
from jvlmm.errors import ConfigError, DataError
from jvlmm.judges import rules
from jvlmm.judges.verdict import Verdict
from jvlmm.models.qwen2_5_vl import encode_vision, forward, logits
from jvlmm.objectives.distillation import DistillationConfig
from jvlmm.objectives.grpo import GRPOConfig
from jvlmm.objectives.visd import VISDConfig
from jvlmm.rollout.engine import Engine, RolloutOptions
from jvlmm.rollout.features import VisualFeatures
from jvlmm.rollout.sampling import SamplingOptions
from jvlmm.training.advantage_estimator import AdvantageEstimator
from jvlmm.training.completions import group_log_probs, log_probs_with_logits
from jvlmm.training.experience import Gatherer, GroupOptions
from jvlmm.training.hindsight_writing import HindsightOptions, HindsightWriter
from jvlmm.training.optimizer import OptimizerOptions, make_optimizer
from jvlmm.training.policy import PolicyStep, UpdateOptions
from jvlmm.training.policy_loss import make_policy_loss
from jvlmm.training.state import create_state
from jvlmm.training.step import make_train_step
from jvlmm.training.teaching import TEACHING_PROFILES, Teaching, TeachingOptions

BATCH = BatchOptions(batch_size=2, length_buckets=(128,))
SAMPLING = SamplingOptions(max_tokens=6, temperature=0.9)
TOWER = ("vision", "merger")
QUESTIONS = (
    Example("video", "What moves?", "A", "mcq", (Media("video", "1.mp4"),), options=("red", "blue"), question_type="v"),
    Example("text", "What is red?", "B", "mcq", options=("it", "not"), question_type="t", response="It is B"),
)
RULES = lambda params: rules.judge  # noqa: E731
ANSWER = HindsightOptions(("answer",))


@pytest.fixture(scope="module")
def prompts(processor):
    return [Prompt(example, processor.prompt(example)) for example in QUESTIONS]


@pytest.fixture(scope="module")
def make(params, config, tokenizer, rewards):
    """Makes (state, step) with a rate large enough to see; `step.records` are the listed tokens."""

    programs = {}

    def make(options=None, reward="vowels", freeze=TOWER, other=None, **update):
        optimizer = make_optimizer(OptimizerOptions(1e-3, schedule="constant", freeze=freeze), 10, tuple(params))
        lesson = None if options is None else options.lesson
        if (lesson, freeze) not in programs:
            loss = make_policy_loss(config, GRPOConfig(), SAMPLING.temperature, lesson)
            programs[lesson, freeze] = make_train_step(loss, optimizer)
        update = UpdateOptions(**{"rows": 2, **update})
        batch = replace(BATCH, batch_size=update.rows)
        records, shared = [], {"config": config, "batch": batch, "tower_trained": not freeze}
        teaching = options and Teaching(
            options=options,
            hindsight=HindsightWriter(options.hindsight, tokenizer, RULES, header=not options.model),
            temperature=SAMPLING.temperature,
            trained=lambda params: {name: params[name] for name in params if name not in freeze},
            other=other,
            record=lambda step, of_step: records.append((step, of_step)),
            **shared,
        )
        engine = Engine(config, tokenizer, SAMPLING, RolloutOptions(rows=2, slots=3), BATCH)
        step = PolicyStep(
            objective=GRPOConfig(),
            update=programs[lesson, freeze],
            options=update,
            gatherer=Gatherer(engine, VisualFeatures(config, BATCH), rewards(reward), GroupOptions(size=3)),
            estimator=AdvantageEstimator(GRPOConfig()),
            more=lambda: pytest.fail("no further prompts are wanted"),
            seed=0,
            steps=10,
            teaching=teaching,
            **shared,
        )
        step.records = records
        return step.state_at(create_state(params, optimizer), 0), step

    return make


@pytest.fixture(scope="module")
def taught(make, prompts):
    """A batch with its teacher's words, whose weights are not those of the student; and what it was made of."""
    state, step = make(TeachingOptions(VISDConfig(top_k=4), hindsight=ANSWER), freeze=())
    experience = step.gatherer.gather(state.params, prompts, step.more, 0)
    batches = step._batches(experience, state.params)
    teacher = jax.tree.map(lambda x: x * 1.1, state.teacher)
    (batch,), _ = step.teaching.teach(batches, experience.groups, state.params, teacher, 1, 1)
    return batch, experience.groups, teacher


def test_its_words_are_those_of_a_row_with_hindsight_for_each_rollout(taught, config, tokenizer, processor):
    """The prompt said anew, with the block at the end of the user's turn, and positions of its own."""
    batch, groups, teacher = taught
    read = jax.jit(lambda row, features: forward(teacher, config, *row, features))
    for row, (group, gold) in enumerate(zip(groups, ("A. red", "B. not"), strict=True)):
        prompt = group.prompt.sequence
        end = int(np.flatnonzero(prompt.tokens == tokenizer.eos_id)[-1])
        block = tokenizer.encode(f" {HEADER}\nVerified answer: {gold}")
        tokens = np.concatenate([prompt.tokens[:end], block, prompt.tokens[end:]])
        begin = prompt.positions[0, end - 1] + 1 if end == prompt.length else int(prompt.positions[:, end].max())
        features = None
        if prompt.patches:
            alone = collate_groups([prompt], [group.rollouts], BatchOptions(1, (128,)), config)
            features = encode_vision(teacher, config, alone.vision)
        for number, rollout in enumerate(group.rollouts):
            whole = np.concatenate([tokens, rollout.tokens])
            tail = begin + np.arange(len(whole) - end)
            positions = np.concatenate([prompt.positions[:, :end], np.broadcast_to(tail, (3, len(tail)))], axis=1)
            index = np.concatenate([prompt.visual_index[:end], np.full(len(tail), -1, np.int32)])
            given = tuple(jnp.asarray(x)[None] for x in (whole, positions, np.ones(len(whole), np.int32), index))
            hidden = read(given, features)[0, len(tokens) - 1 : -1]
            expected = logits(teacher, config, hidden) / SAMPLING.temperature
            place = row, number, slice(len(rollout.tokens))
            best, ids = jax.lax.top_k(expected, 4)
            own = jnp.take_along_axis(expected, jnp.asarray(rollout.tokens)[:, None], axis=-1)[:, 0]
            np.testing.assert_allclose(batch.teacher.logits[place], best, atol=2e-4)
            assert (batch.teacher.ids[place] == ids).mean() > 0.9  # equals may change places
            np.testing.assert_allclose(batch.teacher.own_logits[place], own, atol=2e-4)
            log_probs = own - jax.nn.logsumexp(expected, axis=-1)
            np.testing.assert_allclose(batch.teacher.log_probs[place], log_probs, atol=2e-4)


def test_a_rollout_of_which_nothing_is_known_is_learnt_as_without_a_teacher(make, prompts):
    plain, step = make()
    plain, expected = step(plain, [prompts])
    nothing = TeachingOptions(hindsight=HindsightOptions(("window", "moments")))
    state, step = make(nothing)
    state, metrics = step(state, [prompts])
    assert metrics["teacher/known"] == 0 and metrics["visd/tokens"] == 0
    assert metrics["loss"] == pytest.approx(expected["loss"], abs=1e-6)
    assert metrics["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-5)


def test_what_the_teacher_knows_changes_the_update_and_is_reported(make, prompts):
    plain, step = make()
    _, expected = step(plain, [prompts])
    state, step = make(TeachingOptions())
    state, metrics = step(state, [prompts])
    assert metrics["teacher/known"] == 1 and metrics["teacher/strength"] == 0.5 and metrics["teacher/leaks"] == 0
    assert 0.8 <= metrics["visd/weight"] <= 1.2 and metrics["visd/gap_abs"] > 0
    assert 0 <= metrics["visd/clipped"] <= 1 and 0 <= metrics["visd/among_best"] <= 1
    assert {f"visd/gap/{third}" for third in ("first", "middle", "last")} <= set(metrics)
    assert metrics["judge/failed"] == 0 and metrics["judge/incomplete"] == 1
    assert min(metrics["seconds/judge"], metrics["seconds/teacher"]) > 0
    assert abs(metrics["grad_norm"] / expected["grad_norm"] - 1) > 1e-4


def test_the_weights_of_tokens_are_listed(make, prompts):
    options = TeachingOptions(list_every=2)
    state, step = make(options)
    for _ in range(3):
        state, _ = step(state, [prompts])
    assert [number for number, _ in step.records] == [1, 3]
    _, records = step.records[0]
    assert [record["sample"] for record in records] == [0, 1, 2]
    for record in records:
        sign = np.sign(record["advantage"])
        expected = np.clip(np.exp(sign * np.array(record["gaps"])), 0.8, 1.2)
        np.testing.assert_allclose(record["weights"], expected, atol=1e-3)
        assert len(record["tokens"]) == len(record["gaps"])


def test_an_average_follows_every_update_and_goes_when_it_is_not_needed(make, prompts, params):
    options = TeachingOptions(VISDConfig(anneal_steps=3), decay=0.75, hindsight=ANSWER)
    state, step = make(options, updates=2, rows=1)
    assert set(state.teacher) == set(params) - set(TOWER)
    average, students = jax.tree.map(np.array, state.teacher), []
    update = step.update

    def watched(state, part):
        state, metrics = update(state, part)
        students.append(jax.tree.map(np.array, {name: state.params[name] for name in average}))
        return state, metrics

    watched.compiles = 0
    step.update = watched
    state, metrics = step(state, [prompts])
    assert metrics["teacher/strength"] == 0.5
    for student in students:
        average = jax.tree.map(lambda t, s: 0.75 * t + 0.25 * s, average, student)
    assert apart(state.teacher, average) < 1e-6
    state, metrics = step(state, [prompts])
    assert metrics["teacher/strength"] == pytest.approx(0.5 / 3) and state.teacher is None
    state, metrics = step(state, [prompts])
    assert "teacher/strength" not in metrics and "visd/weight" not in metrics
    _, step = make(options, updates=2, rows=1)
    assert step.state_at(state, 1).teacher is not None and step.state_at(state, 2).teacher is None


@pytest.mark.parametrize(
    ("decay", "every", "moves"), [(1.0, 1, (False, False)), (0.0, 2, (False, True)), (0.0, 1, None)]
)
def test_other_teachers_stay_or_follow_in_leaps(make, prompts, params, decay, every, moves):
    state, step = make(TeachingOptions(decay=decay, every=every, hindsight=ANSWER))
    for moved in moves or (None, None):
        state, _ = step(state, [prompts])
        if moved is None:
            assert state.teacher is None
        else:
            now = state.params if moved else params
            assert apart(state.teacher, {name: now[name] for name in state.teacher}) == 0


def test_another_model_teaches_with_its_own_words_of_those_that_the_student_has(make, prompts, config, params):
    """One with four more rows in its head, which no token has; it is told nothing."""
    wider = replace(config, text=replace(config.text, vocab_size=config.text.vocab_size + 4))
    head = params["decoder"]["embed"]["embedding"]
    rows = np.concatenate([head, 9 * np.ones((4, head.shape[1]), head.dtype)])
    theirs = {**params, "decoder": {**params["decoder"], "embed": {"embedding": rows}}}
    theirs = jax.tree.map(lambda x: 1.1 * x, theirs)
    state, step = make(replace(TEACHING_PROFILES["gkd"], lesson=VISDConfig(top_k=4)), other=(wider, theirs))
    assert state.teacher is None
    experience = step.gatherer.gather(state.params, prompts, step.more, 0)
    batches = step._batches(experience, state.params)
    (batch,), figures = step.teaching.teach(batches, experience.groups, state.params, None, 1, 1)
    assert figures["teacher/known"] == 0 and batch.teacher.known.all()
    own = {**theirs, "decoder": {**theirs["decoder"], "embed": {"embedding": rows[: len(head)] * 1.1}}}
    whole = collate_groups(
        [group.prompt.sequence for group in experience.groups],
        [group.rollouts for group in experience.groups],
        BATCH,
        config,
        max_tokens=SAMPLING.max_tokens,
    )
    expected = jax.jit(lambda own: group_log_probs(own, config, whole, temperature=SAMPLING.temperature))(own)
    np.testing.assert_allclose(batch.teacher.log_probs, expected, atol=2e-4)
    assert batch.teacher.ids.max() < len(head)


def test_the_support_is_the_students_where_the_lesson_says_so(make, prompts, config):
    """The student's top-K tokens, with the teacher's logits at them; over all tokens the support says nothing."""
    own = DistillationConfig(top_k=4, support="student")
    state, step = make(TeachingOptions(own, hindsight=ANSWER), freeze=())
    experience = step.gatherer.gather(state.params, prompts, step.more, 0)
    batches = step._batches(experience, state.params)
    teacher = jax.tree.map(lambda x: x * 1.1, state.teacher)
    given = experience.groups, state.params, teacher, 1, 1
    (batch,), _ = step.teaching.teach(batches, *given)
    mask, ids = batch.completion_mask, batch.teacher.ids
    arguments = batch, jnp.asarray(ids), 512, SAMPLING.temperature
    at_them = jax.jit(lambda params: log_probs_with_logits(params, config, *arguments)[1])(state.params)
    assert (np.diff(at_them, axis=-1)[mask] <= 1e-5).all(), "the student's, falling"
    whole = DistillationConfig(top_k=config.text.vocab_size)
    _, other = make(TeachingOptions(whole, hindsight=ANSWER), freeze=())
    (every,), _ = other.teaching.teach(batches, *given)
    order = np.argsort(every.teacher.ids, axis=-1)
    by_token = np.take_along_axis(every.teacher.logits, order, axis=-1)
    expected = np.take_along_axis(by_token, ids, axis=-1)
    np.testing.assert_allclose(batch.teacher.logits[mask], expected[mask], atol=2e-4)
    np.testing.assert_allclose(batch.teacher.log_probs, every.teacher.log_probs, atol=2e-4)
    assert (ids[mask] != every.teacher.ids[..., :4][mask]).any(), "or the test tells nothing"
    assert (batch.teacher.logits[~mask] == 0).all()


@pytest.mark.parametrize("profile", ["sdft", "sdpo"])
def test_distillation_needs_no_rewards(make, prompts, profile):
    """Of rewards that are all equal a sibling is no better, so only feedback and demonstrations remain."""
    state, step = make(TEACHING_PROFILES[profile], reward="nothing")
    known = 0.5 if "demonstration" in TEACHING_PROFILES[profile].hindsight.lines else 1
    state, first = step(state, [prompts])
    assert first["teacher/known"] == known and first["loss"] > 0 and first["grad_norm"] > 0
    assert not step.records


@pytest.fixture(scope="module")
def group(make, prompts):
    state, step = make()
    return step.gatherer.gather(state.params, prompts, step.more, 0).groups[0]


def test_a_judge_that_fails_costs_its_line_alone(group, tokenizer):
    some = lambda cases: [Verdict("Look again.") if n else None for n in range(len(cases))]  # noqa: E731
    (blocks,), figures = HindsightWriter(
        HindsightOptions(("answer", "feedback")), tokenizer, lambda params: some
    ).blocks([group], None)
    ends = [tokenizer.decode(block).rpartition("\n")[2] for block in blocks]
    assert ends == ["Verified answer: A. red", "Corrective feedback: Look again.", "Corrective feedback: Look again."]
    assert figures["judge/failed"] == pytest.approx(1 / 3) and figures["teacher/known"] == 1


def test_without_lines_the_header_stands_alone_or_nothing_does(group, tokenizer):
    (blocks,), figures = HindsightWriter(HindsightOptions(()), tokenizer, RULES).blocks([group], None)
    assert [tokenizer.decode(block) for block in blocks] == [f" {HEADER}"] * 3 and figures["teacher/known"] == 1
    silent = HindsightWriter(HindsightOptions(()), tokenizer, RULES, header=False)
    assert silent.blocks([group], None)[1]["teacher/known"] == 0


def test_shuffled_lines_are_those_of_another_question_and_the_same_for_one_seed(group, tokenizer):
    groups = [
        replace(group, prompt=replace(group.prompt, example=Example(name, "?", f"answer {name}", "text")))
        for name in "abcabd"
    ]

    def told(seed, step, groups=groups):
        options = HindsightOptions(("answer",), shuffled=True)
        blocks, _ = HindsightWriter(options, tokenizer, RULES, seed=seed).blocks(groups, None, step)
        return [tokenizer.decode(of_group[0])[-1:] for of_group in blocks]

    assert told(0, 1) == told(0, 1)
    drawn = {tuple(told(seed, step)) for seed in range(3) for step in range(3)}
    assert len(drawn) > 3
    for names in drawn:
        assert all(name != own for name, own in zip(names, "abcabd", strict=True)) and set(names) == set("abcd")
    assert told(0, 1, groups[:1] + groups[3:4]) == ["", ""], "one question has no other"


def test_a_row_of_which_nothing_can_be_known_is_no_use_to_distillation():
    bare = Example("row", "What?", "A", "mcq", options=("red", "blue"))
    for profile in ("sdft", "opsd"):
        with pytest.raises(DataError, match="example 'row' does not have a response, .*hindsight.lines=demonstration"):
            TEACHING_PROFILES[profile].check(bare)
        TEACHING_PROFILES[profile].check(replace(bare, response="It is A"))
    for other in ("sdpo", "gkd", "rlsd", "visd_release"):
        TEACHING_PROFILES[other].check(bare)
    windows = HindsightOptions(("window", "moments"))
    TeachingOptions(hindsight=windows).check(bare)  # weights: such a row is learnt as without a teacher
    with pytest.raises(DataError, match="does not have a window or key frames"):
        replace(TEACHING_PROFILES["sdft"], hindsight=windows).check(bare)


def test_a_sibling_is_the_best_right_one_of_the_others(group, tokenizer):
    group = replace(group, texts=("one", "two", "three"), rewards=np.array([1.0, 3.0, 2.0]))
    writer = HindsightWriter(HindsightOptions(("sibling",)), tokenizer, RULES)
    (blocks,), figures = writer.blocks([group], None)
    assert [tokenizer.decode(block).split(": ")[-1] for block in blocks] == ["two", "three", "two"]
    judged = replace(group, accuracy=np.array([1.0, 0.5, np.nan]))  # the last is judged by its reward of 2
    (blocks,), _ = writer.blocks([judged], None)
    assert [tokenizer.decode(block).split(": ")[-1] for block in blocks] == ["three", "three", "one"]
    lenient = HindsightWriter(HindsightOptions(("sibling",), right=0.5), tokenizer, RULES)
    (blocks,), _ = lenient.blocks([judged], None)
    assert [tokenizer.decode(block).split(": ")[-1] for block in blocks] == ["two", "three", "two"]
    wrong = replace(group, accuracy=np.array([0.9, 0.4, 0.4]))
    assert writer.blocks([wrong], None)[1]["teacher/known"] == 0, "the best of wrong ones is not right"
    alone = replace(group, accuracy=np.array([1.0, 0.0, 0.0]))
    assert [len(block) > 0 for block in writer.blocks([alone], None)[0][0]] == [False, True, True]
    equal = replace(group, rewards=np.zeros(3))
    assert writer.blocks([equal], None)[1]["teacher/known"] == 0
    quoting = replace(group, texts=("The Verified answer", "no", "so"))
    assert writer.blocks([quoting], None)[1]["teacher/leaks"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("make_options", "message"),
    [
        (lambda: TeachingOptions(decay=1.5), "teaching.decay=1.5"),
        (lambda: TeachingOptions(every=0), "teaching.every=0"),
        (lambda: TeachingOptions(model="m"), "teaching.model='m' and teaching.decay=0.99"),
        (lambda: HindsightOptions((), shuffled=True), "hindsight.shuffled has an effect only with hindsight.lines"),
        (lambda: HindsightOptions(right=float("nan")), "hindsight.right=nan"),
        (lambda: TeachingOptions(decay=1.0, every=5), "teaching.every=5"),
        (lambda: HindsightOptions(("gossip",)), "hindsight.lines="),
        (lambda: HindsightOptions(max_tokens=0), "hindsight.max_tokens=0"),
    ],
)
def test_impossible_options_are_refused(make_options, message):
    with pytest.raises(ConfigError, match=message):
        make_options()
