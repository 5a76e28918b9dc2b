import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize as theirs

from jvlmm.errors import ConfigError, VideoError
from jvlmm.video.budget import PixelOptions, smart_resize, video_frame_pixels, video_frame_size

UNBOUNDED = (3136, 12_845_056)


@pytest.mark.parametrize(
    ("size", "bounds", "expected"),
    [
        ((561, 278), (3136, 1_003_520), (560, 280)),
        ((1080, 1920), UNBOUNDED, (1092, 1932)),
        ((1080, 1920), (100_352, 602_112), (560, 1008)),
        ((480, 854), UNBOUNDED, (476, 840)),
        ((720, 1280), (100_352, 100_352), (224, 420)),
        ((28, 5600), UNBOUNDED, (28, 5600)),
    ],
)
def test_smart_resize_goldens(size, bounds, expected):
    assert smart_resize(*size, *bounds) == expected


@pytest.mark.parametrize("size", [(28, 5601), (100, 20_001), (0, 10)])
def test_aspect_ratio_above_200_is_refused(size):
    with pytest.raises(VideoError, match="aspect ratio must be at most 200"):
        smart_resize(*size, *UNBOUNDED)


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 400), st.integers(4, 4000))
def test_smart_resize_stays_within_its_bounds(height, width, low_tokens, more_tokens):
    assume(max(height, width) <= 200 * min(height, width))
    low, high = low_tokens * 784, (low_tokens + more_tokens) * 784
    new_height, new_width = smart_resize(height, width, low, high)
    assert new_height % 28 == new_width % 28 == 0
    assert new_height * new_width >= min(low, 784) or min(new_height, new_width) == 28
    if min(new_height, new_width) > 28:
        one_step = max(new_height, new_width) * 28  # rounding up to reach the minimum may overshoot by one row
        assert new_height * new_width <= max(high, low + 2 * one_step)


@given(st.integers(15, 3000), st.integers(15, 3000))  # below, theirs rounds a side to zero first
def test_smart_resize_equals_transformers(height, width):
    assume(max(height, width) <= 200 * min(height, width))
    assert smart_resize(height, width, 3136, 1_003_520) == theirs(height, width, 28, 3136, 1_003_520)


def test_frame_budget_shrinks_with_the_number_of_frames_down_to_its_floor():
    options = PixelOptions()
    assert video_frame_pixels(16, options) == 768 * 784
    assert video_frame_pixels(768, options) == int(0.9 * 128_000 * 784 / 768 * 2)
    assert video_frame_pixels(10_000, options) == int(1.05 * 128 * 784)
    assert video_frame_size(16, 1080, 1920, options) == (560, 1008)
    assert video_frame_size(768, 1080, 1920, options) == (336, 644)


@pytest.mark.parametrize("name", ["min_pixels", "video_min_pixels", "video_total_pixels"])
def test_a_bound_of_no_pixels_is_refused(name):
    with pytest.raises(ConfigError, match=f"pixels.{name}=0"):
        PixelOptions(**{name: 0})


def test_impossible_bounds_are_refused_by_name():
    with pytest.raises(ConfigError, match="pixels.video_min_pixels=10, pixels.video_max_pixels=5"):
        PixelOptions(video_min_pixels=10, video_max_pixels=5)
