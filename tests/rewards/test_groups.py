"""Bonuses within a group, worked by hand."""

import numpy as np
import pytest

from jvlmm.errors import ConfigError
from jvlmm.rewards.groups import LengthBonus, temporal_bonus, video_r1_length_bonus, video_r1_temporal_bonus

NAN = float("nan")


def test_order_is_rewarded_by_how_much_it_helps():
    correct = np.array([[True, True, True, False], [True, False, False, False], [False] * 4])
    shuffled = np.array([[True, False], [True, True], [False, False]])
    bonus = temporal_bonus(correct, shuffled, weight=0.4, margin=0.05)
    np.testing.assert_allclose(bonus, [[0.08, 0.08, 0.08, 0], [0] * 4, [0] * 4])


@pytest.mark.parametrize(("ratio", "expected"), [(0.8, [0.3, 0.3, 0, 0]), (1.0, [0, 0, 0, 0])])
def test_video_r1_rewards_order_that_does_not_hurt(ratio, expected):
    accuracy, shuffled = np.array([[1.0, 0.8, 0.1, 0.0]]), np.array([[0.5, 0.5]])  # means 0.475 and 0.5
    np.testing.assert_allclose(video_r1_temporal_bonus(accuracy, shuffled, np.array([True]), ratio=ratio), [expected])


def test_video_r1_gives_images_and_unjudged_groups_no_temporal_bonus():
    accuracy, shuffled = np.array([[1.0, 1.0], [NAN, NAN]]), np.zeros((2, 1))
    assert not video_r1_temporal_bonus(accuracy, shuffled, np.array([False, True])).any()


def test_video_r1_pays_for_length_where_two_are_correct():
    accuracy = np.array([[1.0, 0.5, 1.0, 0.0], [1.0, 0.1, 0.0, NAN]])
    tokens = np.array([[320, 512, 513, 400], [400, 400, 400, 400]])
    np.testing.assert_allclose(video_r1_length_bonus(accuracy, tokens), [[0.2, 0.2, 0, 0], [0, 0, 0, 0]])


def test_the_length_bonus_is_an_option():
    accuracy, tokens = np.array([[1.0, 1.0, 0.0]]), np.array([[3, 9, 3]])
    np.testing.assert_allclose(LengthBonus(2, 4, 0.5)(accuracy, tokens), [[0.5, 0, 0]])
    for wrong in ((5, 4, 0.5), (-1, 4, 0.5), (2, 4, 0.0)):
        with pytest.raises(ConfigError, match="group.length_bonus.min_tokens="):
            LengthBonus(*wrong)
