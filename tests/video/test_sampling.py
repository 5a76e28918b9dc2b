import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from jvlmm.errors import ConfigError, VideoError
from jvlmm.video.sampling import SAMPLERS, FrameOptions, smart_nframes, spread

try:
    import torch
except ImportError:
    torch = None

qwen = SAMPLERS["qwen-vl-utils"]


@pytest.mark.parametrize(
    ("total", "fps", "options", "count"),
    [
        (300, 30, FrameOptions(), 20),
        (292, 30, FrameOptions(), 18),
        (300, 30, FrameOptions(fps=1), 10),
        (300, 30, FrameOptions(num_frames=15), 16),
        (10, 30, FrameOptions(), 4),
        (3, 30, FrameOptions(), 2),
        (100_000, 30, FrameOptions(), 768),
        (300, 30, FrameOptions(max_frames=9), 8),
        (300, 30, FrameOptions(fps=0.1, min_frames=5), 6),
    ],
)
def test_number_of_frames_is_that_of_qwen_vl_utils(total, fps, options, count):
    assert smart_nframes(total, fps, options) == count


def test_too_short_videos_are_refused_with_their_length():
    with pytest.raises(VideoError, match="has 1 frame, .* use it as an image"):
        qwen(1, 30, FrameOptions())
    with pytest.raises(VideoError, match="has 10 frames, 16 are asked for"):
        qwen(10, 30, FrameOptions(num_frames=16, short="refuse"))
    with pytest.raises(VideoError, match="has 10 frames, 16 are asked for"):
        SAMPLERS["uniform"](10, 30, FrameOptions(sampler="uniform", num_frames=16, short="refuse"))


def test_uniform_floors_to_even_and_spans_the_whole_video():
    indices = SAMPLERS["uniform"](101, 30, FrameOptions(sampler="uniform", num_frames=7))
    assert indices.tolist() == [0, 20, 40, 60, 80, 100]


@pytest.mark.skipif(torch is None, reason="torch is not installed: the reference rounds torch.linspace")
@given(st.integers(2, 20_000), st.integers(2, 768))
@example(17426, 532)  # a tie that a product rounded by itself breaks the other way
@example(29, 25)  # a tie in the first half, that counting from the end breaks the other way
def test_spread_equals_torch_linspace(total, count):
    count = min(count, total)
    assert spread(total, count).tolist() == torch.linspace(0, total - 1, count).round().long().tolist()


def test_ties_round_from_the_end_that_is_nearer():
    """As torch.linspace rounds them: of 29 frames the tenth of 25 lies at 10.5, of 53 at 19.5."""
    assert spread(29, 25)[[9, 15]].tolist() == [10, 18] and spread(53, 25)[[9, 15]].tolist() == [20, 32]


@given(
    total=st.integers(2, 50_000),
    video_fps=st.floats(1, 120),
    fps=st.floats(0.05, 60),
    low=st.integers(2, 20),
    extra=st.integers(0, 800),
)
def test_sampled_frames_are_distinct_even_in_number_and_reach_both_ends(total, video_fps, fps, low, extra):
    options = FrameOptions(fps=fps, min_frames=low, max_frames=low + extra)
    indices = qwen(total, video_fps, options)
    assert len(indices) % 2 == 0
    assert 2 <= len(indices) <= min(total, options.max_frames)
    assert indices[0] == 0
    assert indices[-1] == total - 1
    assert np.all(np.diff(indices) > 0)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"sampler": "unifrom"}, "unifrom"),
        ({"fps": 0}, "frames.fps=0"),
        ({"fps": float("nan")}, "frames.fps=nan"),
        ({"num_frames": 1}, "frames.num_frames=1"),
        ({"sampler": "uniform"}, "frames.num_frames"),
        ({"min_frames": 9, "max_frames": 8}, "frames.min_frames=9"),
    ],
)
def test_impossible_options_are_refused_by_name(fields, named):
    with pytest.raises(ConfigError, match=named):
        FrameOptions(**fields)
