"""Terms and presets, the table of rewards, and rewards that fail."""

import math
import subprocess
import sys
from collections.abc import Sequence

import numpy as np
import pytest
from toy_answers import ask, say

from jvlmm.config import apply_overrides, from_json, to_json
from jvlmm.errors import ConfigError, DataError
from jvlmm.rewards import registry
from jvlmm.rewards.rewarder import make_rewarder
from jvlmm.rewards.terms import PRESETS, RewardOptions, RewardTerm

TWO = ("red", "blue")
QUESTIONS = (
    ask("mcq", "B", TWO, question_type="colour"),
    ask("span", "1 to 3", question_type="when"),
    ask("mcq", "A", TWO, question_type="colour"),
)


def rewards_of(*terms: RewardTerm, preset: str | None = None):
    return make_rewarder(RewardOptions(preset, terms))


def test_total_parts_and_accuracy():
    table = make_rewarder(RewardOptions())([say("B"), say("2 to 3"), say("B")], QUESTIONS)
    np.testing.assert_allclose(table.parts["accuracy"], [1, 0.5, 0])
    np.testing.assert_allclose(table.total, [1, 0.55, 0.1])
    np.testing.assert_allclose(table.accuracy, [1, 0.5, 0])
    assert table.total.dtype == np.float64 and not table.failures


def test_a_term_is_nan_where_it_does_not_apply():
    rewarder = rewards_of(
        RewardTerm("choice", "multiple_choice", answer_types=("mcq",)),
        RewardTerm("when", "temporal_iou", 2.0, question_types=("when",)),
        RewardTerm("form", "format", 0.0),
    )
    table = rewarder([say("B"), say("1 to 3"), say("B")], QUESTIONS)
    np.testing.assert_array_equal(table.parts["choice"], [1, math.nan, 0])
    np.testing.assert_array_equal(table.parts["when"], [math.nan, 1, math.nan])
    np.testing.assert_array_equal(table.total, [1, 2, 0])
    np.testing.assert_array_equal(table.accuracy, [1, 1, 0])
    metrics = table.metrics(QUESTIONS)
    assert metrics["reward"] == 1 and metrics["reward/colour"] == 0.5
    assert metrics["reward/choice"] == metrics["reward/choice/colour"] == 0.5
    assert "reward/choice/when" not in metrics and metrics["reward/form/when"] == 1
    assert metrics["answer_accuracy"] == pytest.approx(2 / 3) and metrics["reward_failures"] == 0


def test_without_a_term_that_judges_the_answer_there_is_no_accuracy():
    table = rewards_of(RewardTerm("form", "format"))([say("B")], QUESTIONS[:1])
    assert np.isnan(table.accuracy).all()
    assert "answer_accuracy" not in table.metrics(QUESTIONS[:1])


def test_nothing_to_grade():
    table = make_rewarder(RewardOptions())([], [])
    assert table.total.shape == table.accuracy.shape == (0,)
    assert table.metrics([]) == {"reward_failures": 0}


def test_completions_and_examples_must_match_in_number():
    with pytest.raises(ValueError, match="1 completions of 3 examples"):
        make_rewarder(RewardOptions())([say("B")], QUESTIONS)


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        (None, "returned None"),
        (math.nan, "returned nan"),
        (-math.inf, "returned -inf"),
        ("1.0", "returned the str '1.0'"),
        ([1.0], "returned the list"),
        (1j, "returned the complex"),
        (np.ones(2), "returned the ndarray"),
        (10**400, "returned the int"),
        (ZeroDivisionError("by zero"), "ZeroDivisionError: by zero .*test_rewarder.py, line"),
    ],
)
def test_a_reward_that_fails_is_none_counted_and_named(monkeypatch, result, reason):
    def failing(completion, example):
        if example.question_type != "colour":
            return 1
        if isinstance(result, Exception):
            raise result
        return result

    monkeypatch.setitem(registry.REWARDS, "failing", failing)
    table = rewards_of(RewardTerm("mine", "failing"), RewardTerm("form", "format"))([say("B")] * 3, QUESTIONS)
    np.testing.assert_array_equal(table.parts["mine"], [math.nan, 1, math.nan])
    np.testing.assert_array_equal(table.total, [math.nan, 2, math.nan])
    assert table.metrics(QUESTIONS)["reward"] == 2 and table.metrics(QUESTIONS)["reward/mine"] == 1
    table.require_some()
    assert list(table.failures) == ["mine"] and table.failures["mine"].count == 2
    with pytest.raises(AssertionError, match="^example 'q1': .*" + reason):
        raise AssertionError(table.failures["mine"].reason)
    assert table.metrics(QUESTIONS)["reward_failures/mine"] == 2


@pytest.mark.parametrize("value", [True, 1, np.float32(1), np.int64(1), np.array(1.0), np.array([1.0])])
def test_numbers_of_all_kinds_are_rewards(monkeypatch, value):
    monkeypatch.setitem(registry.REWARDS, "kind", lambda completion, example: value)
    assert rewards_of(RewardTerm("kind", "kind"))([say("B")], QUESTIONS[:1]).total == [1.0]


def test_rows_the_terms_cannot_use_are_refused_when_read():
    rewarder = rewards_of(
        RewardTerm("when", "temporal_iou", answer_types=("span",)), RewardTerm("value", "mra", answer_types=("number",))
    )
    rewarder.check(ask("span", "1 to 3"))
    with pytest.raises(DataError, match="start and a later end"):
        rewarder.check(ask("span", "later"))
    with pytest.raises(DataError, match="a number"):
        rewarder.check(ask("number", "many"))
    with pytest.raises(DataError, match="no reward term takes question type 'general' with answer type 'mcq'"):
        rewarder.check(ask("mcq", "A", TWO))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: RewardTerm("a", "accuracy", -1.0), "weight = -1.0"),
        (lambda: RewardTerm("a", "accuracy", math.nan), "weight = nan"),
        (lambda: RewardTerm("a", "acuracy"), "allowed: accuracy, .*path/to/file.py:function"),
        (lambda: RewardTerm("a", "accuracy", answer_types=("mqc",)), "'mqc' is unknown; allowed: mcq"),
        (lambda: RewardOptions("video-r2"), "allowed: default, video-r1, visd and none"),
        (lambda: RewardOptions(None), "there is no reward"),
        (lambda: RewardOptions(None, (RewardTerm("a", "format"), RewardTerm("a", "ocr"))), "'a' stands twice"),
    ],
)
def test_bad_terms_are_refused(build, message):
    with pytest.raises(ConfigError, match=message):
        build()


def test_terms_are_added_to_a_preset_or_take_the_place_of_its_own():
    own = (RewardTerm("accuracy", "mra"), RewardTerm("short", "overlong", arguments={"max_tokens": 9, "buffer": 3}))
    terms: Sequence[RewardTerm] = RewardOptions("default", own).all_terms
    assert [(term.name, term.reward) for term in terms] == [
        ("format", "format"),
        ("accuracy", "mra"),
        ("short", "overlong"),
    ]
    assert RewardOptions().all_terms == PRESETS["default"]


def test_options_are_overridden_by_name_and_kept_in_json():
    options = RewardOptions(terms=(RewardTerm("short", "overlong", arguments={"max_tokens": 9, "buffer": 3}),))
    changed = apply_overrides(
        options, ["preset=video-r1", "short.weight=0.5", "short.arguments.buffer=4", "short.answer_types=mcq,span"]
    )
    assert changed.preset == "video-r1"
    assert changed.terms[0] == RewardTerm("short", "overlong", 0.5, (), ("mcq", "span"), {"max_tokens": 9, "buffer": 4})
    assert from_json(RewardOptions, to_json(changed)) == changed
    with pytest.raises(ConfigError, match="buffer = 40"):
        apply_overrides(options, ["short.arguments.buffer=40"])
    assert apply_overrides(options, ["preset=none"]).preset is None


def test_the_rewards_are_cheap_to_import():
    code = (
        "import sys, jvlmm.rewards.rewarder; print({'jax', 'torch', 'nltk', 'jiwer', 'rouge_score'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


def test_a_term_without_weight_may_fail(monkeypatch):
    monkeypatch.setitem(registry.REWARDS, "failing", lambda completion, example: None)
    table = rewards_of(RewardTerm("mine", "failing", 0.0), RewardTerm("form", "format"))([say("B")], QUESTIONS[:1])
    assert table.total.tolist() == [1.0] and table.failures["mine"].count == 1


def test_where_nothing_could_be_scored_the_reason_is_said(monkeypatch):
    monkeypatch.setitem(registry.REWARDS, "failing", lambda completion, example: 1 / (example.id == ""))
    table = rewards_of(RewardTerm("mine", "failing"), RewardTerm("form", "format"))([say("B")] * 3, QUESTIONS)
    with pytest.raises(ConfigError, match="none of the 3 rollouts.*term 'mine' example 'q1': ZeroDivisionError"):
        table.require_some()
    make_rewarder(RewardOptions())([], []).require_some()
