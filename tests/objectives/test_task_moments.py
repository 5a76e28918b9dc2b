"""EMA-GRPO against its equations, worked by hand."""

import json

import numpy as np
import pytest

from jvlmm.errors import ConfigError
from jvlmm.objectives.task_moments import TaskMoments, ema_advantages


def test_two_steps_by_hand():
    # Step 1: moments of the rewards themselves: mean 0.5, mean of squares 0.5, std 0.5.
    advantages, moments = ema_advantages(np.array([[1.0, 0.0]]), ["mcq"], TaskMoments(), decay=0.9)
    np.testing.assert_allclose(advantages, [[1, -1]])
    assert moments.tasks["mcq"] == (0.5, 0.5)
    # Step 2: m1 = 0.9 · 0.5 + 0.1 · 1 = 0.55, m2 = 0.9 · 0.5 + 0.1 · 2 = 0.65, variance 0.65 − 0.3025 = 0.3475.
    advantages, moments = ema_advantages(np.array([[2.0, 0.0]]), ["mcq"], moments, decay=0.9)
    np.testing.assert_allclose(moments.tasks["mcq"], (0.55, 0.65))
    np.testing.assert_allclose(advantages, np.array([[1, -1]]) / 0.3475**0.5, rtol=1e-6)


def test_tasks_have_their_own_scale_and_share_it_among_their_groups():
    rewards = np.array([[1.0, 0.0], [0.02, 0.0], [0.0, 0.0], [0.01, 0.01]])
    advantages, moments = ema_advantages(rewards, ["mcq", "tiou", "mcq", "tiou"], TaskMoments())
    np.testing.assert_allclose(moments.std("mcq"), np.std([1, 0, 0, 0]))
    np.testing.assert_allclose(moments.std("tiou"), np.std([0.02, 0, 0.01, 0.01]))
    np.testing.assert_allclose(advantages[0], np.array([0.5, -0.5]) / moments.std("mcq"), rtol=1e-6)
    np.testing.assert_allclose(advantages[1], np.array([0.01, -0.01]) / moments.std("tiou"), rtol=1e-6)
    assert not advantages[2:].any()


def test_advantages_are_clipped_at_five_and_tiny_deviations_bounded():
    _, calm = ema_advantages(np.array([[0.5, 0.5]]), ["a"], TaskMoments())
    assert calm.std("a") == 1e-3
    advantages, _ = ema_advantages(np.array([[9.0, 0.0]]), ["a"], calm, decay=0.99)
    np.testing.assert_array_equal(advantages, [[5, -5]])


def test_failed_rollouts_take_no_part():
    rewards, valid = np.array([[1.0, np.nan, 0.0], [np.nan, np.nan, np.nan]]), np.array([[1, 0, 1], [0, 0, 0]], bool)
    advantages, moments = ema_advantages(rewards, ["a", "b"], TaskMoments(), valid=valid)
    np.testing.assert_allclose(advantages, [[1, 0, -1], [0, 0, 0]])
    assert dict(moments.tasks) == {"a": (0.5, 0.5)}


def test_state_survives_json_and_is_not_changed_in_place():
    rewards = np.array([[1.0, 0.25], [0.5, 0.125]])
    first = ema_advantages(rewards, ["a", "b"], TaskMoments())[1]
    before = dict(first.tasks)
    restored = TaskMoments(json.loads(json.dumps(first.tasks)))
    again, resumed = ema_advantages(rewards * 3, ["a", "a"], restored)
    expected, moments = ema_advantages(rewards * 3, ["a", "a"], first)
    np.testing.assert_array_equal(again, expected)
    assert json.dumps(resumed.tasks) == json.dumps(moments.tasks) and first.tasks == before


def test_bad_input_is_refused():
    with pytest.raises(ConfigError, match="at least 2 rollouts"):
        ema_advantages(np.ones((2, 1)), ["a", "a"], TaskMoments())
    with pytest.raises(ValueError, match="1 tasks for 2 prompts"):
        ema_advantages(np.ones((2, 2)), ["a"], TaskMoments())
