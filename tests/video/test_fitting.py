"""Media are made to fit a number of tokens: fewer frames first, then smaller pictures, then fewer frames again."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jvlmm.errors import ConfigError
from jvlmm.video.budget import PixelOptions
from jvlmm.video.fitting import FitOptions, Measured, asked_plan, fitted, planned_size, visual_tokens

PIXELS, FIT = PixelOptions(), FitOptions()
MINUTE = Measured(480, 854, tuple(number / 2 for number in range(120)))  # 60 s at 2 frames per second
PICTURE = Measured(1500, 2000)


def fit(media, room, step_tokens=0, **options):
    plans = fitted(media, PIXELS, FitOptions(**options), room=room, step_tokens=[step_tokens] * len(media))
    return plans and [
        (plan.frames, *planned_size(medium, plan, PIXELS)) for medium, plan in zip(media, plans, strict=True)
    ]


def test_a_minute_at_480p_by_hand():
    """30 x 17 tokens a pair of frames: 30,600 of 60 pairs; 15 are 7,650, a sixteenth is too much for 8,100."""
    assert visual_tokens(MINUTE, asked_plan(MINUTE, PIXELS), PIXELS) == 30_600
    assert fit([MINUTE], 30_600) == [(120, 476, 840)]
    assert fit([MINUTE], 8_100) == [(30, 476, 840)]
    assert fit([MINUTE], 4_080) == [(16, 476, 840)], "the least number of frames in full size"
    assert fit([MINUTE], 2_000) == [(16, 308, 588)], "smaller: 8 pairs of 11 x 21 tokens"
    assert fit([MINUTE], 600) == [(10, 224, 420)], "the least size, 8 x 15 tokens, and 5 pairs"
    assert fit([MINUTE], 120) == [(2, 224, 420)]
    assert fit([MINUTE], 119) is None and fit([MINUTE], -5) is None


def test_what_is_said_of_each_pair_counts():
    assert fit([MINUTE], 8_100, step_tokens=30) == [(30, 476, 840)]
    assert fit([MINUTE], 8_099, step_tokens=30) == [(28, 476, 840)]


def test_media_of_a_row_share_the_room():
    half = Measured(480, 854, MINUTE.times[:60])
    shared = fit([MINUTE, half], 9_200)
    assert [frames for frames, *_ in shared] == [20, 16], "frames by one factor, none below the least"
    assert all(size == [476, 840] for _, *size in shared)
    both = fit([PICTURE, MINUTE], 2_000)
    assert both[0][0] == 0 and both[1][0] == 16
    picture, frame = (height * width / 28**2 for _, height, width in both)
    assert picture + 8 * frame <= 2_000 and abs(picture - frame) < 40, "the largest pictures shrink first"
    assert fit([PICTURE], 500) == [(0, 532, 700)] and fit([PICTURE], 1) is None


MEDIA = st.builds(
    Measured, st.integers(28, 3000), st.integers(28, 3000), st.integers(0, 100).map(lambda n: (0.0,) * 2 * n)
)


@settings(deadline=None, max_examples=60)
@given(st.lists(MEDIA, min_size=1, max_size=4), st.integers(-10, 40_000), st.integers(0, 20), st.integers(2, 40))
def test_a_plan_fits_and_never_asks_for_more(media, room, step, least):
    plans = fitted(media, PIXELS, FitOptions(least_frames=least), room=room, step_tokens=[step] * len(media))
    whole = [asked_plan(medium, PIXELS) for medium in media]
    if plans is None:
        return
    tokens = [visual_tokens(m, p, PIXELS) + p.frames // 2 * step for m, p in zip(media, plans, strict=True)]
    assert sum(tokens) <= room
    for medium, plan, asked in zip(media, plans, whole, strict=True):
        assert plan.frames <= asked.frames and plan.frames % 2 == 0 and bool(plan.frames) == bool(medium.times)
        assert visual_tokens(medium, plan, PIXELS) <= visual_tokens(medium, asked, PIXELS)


def test_more_room_shows_more():
    def shown(room):
        (plan,) = fitted([MINUTE], PIXELS, FIT, room=room, step_tokens=[0])
        return visual_tokens(MINUTE, plan, PIXELS)

    seen = [shown(room) for room in range(144, 31_000, 97)]
    assert all(one <= other for one, other in pairwise(seen)) and seen[-1] == 30_600


@pytest.mark.parametrize("options", [{"rule": "tight"}, {"least_frames": 1}])
def test_impossible_options_are_refused(options):
    with pytest.raises(ConfigError, match=f"fit.{next(iter(options))}="):
        FitOptions(**options)
