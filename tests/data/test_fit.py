"""A clip of any length fits its row: by a named rule, before anything is decoded, and told with the sample."""

from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest

from jvlmm.data.batch import BatchOptions
from jvlmm.data.example import Media
from jvlmm.errors import DataError, VideoError
from jvlmm.recipes.sources import VisionOptions
from jvlmm.video.budget import PixelOptions
from jvlmm.video.fitting import FitOptions
from jvlmm.video.sampling import FrameOptions
from jvlmm.video.workers import Decoder


@pytest.fixture(scope="module")
def minute(tmp_path_factory) -> Media:
    """60 s of 854x480 pixels at two frames per second: 30,600 tokens by the defaults."""
    path = tmp_path_factory.mktemp("clips") / "minute.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=2)
        stream.width, stream.height, stream.pix_fmt = 854, 480, "yuv420p"
        stream.options = {"preset": "ultrafast", "g": "20"}
        for number in range(120):
            frame = av.VideoFrame.from_ndarray(np.full((480, 854, 3), number, np.uint8), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 2)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return Media("video", str(path))


class Watched(Decoder):
    """The decoder of this process, which notes what is decoded."""

    def __init__(self):
        super().__init__(workers=0)
        self.decoded = []

    def video(self, path, frames, *arguments, **named):
        self.decoded.append((frames.num_frames, named["pixels"].video_max_pixels))
        return super().video(path, frames, *arguments, **named)


@pytest.fixture
def asked(drawing):
    """Asks a question about media with the defaults, changed by options."""

    def ask(*media, question="What happens?", **options):
        decoder = Watched()
        processor = drawing.processor(decoder, **{"pixels": PixelOptions(), "frames": FrameOptions(), **options})
        example = drawing.example(media=media, question=question)
        return SimpleNamespace(sequence=processor.prompt(example), decoded=decoder.decoded)

    return ask


def test_a_minute_at_480p_fits_by_fewer_frames(asked, minute):
    found = asked(minute)
    (shown,) = found.sequence.shown
    assert found.sequence.length <= 8192 and len(shown.frames) == 30 and shown.asked_frames == 120
    assert (shown.file_size, shown.shown_size, shown.asked_size) == ((854, 480), (840, 476), None)
    assert shown.frames[0] == 0 and shown.frames[-1] == 119 and shown.times[-1] == 59.5
    assert [count for count, _ in found.decoded] == [30], "decoded once, and no frame in vain"
    with pytest.raises(DataError, match=r"30\d\d\d tokens \(30600 visual\) exceed max_length=8192"):
        asked(minute, fit=FitOptions(rule="strict"))


def test_then_by_fewer_pixels_and_in_the_least_of_rows_by_fewer_frames_still(asked, minute):
    found = asked(minute, max_length=1500)
    (shown,) = found.sequence.shown
    assert len(shown.frames) == 16 and shown.asked_size == (840, 476) and found.sequence.length <= 1500
    assert shown.shown_size < shown.asked_size
    least = asked(minute, max_length=500).sequence
    assert 2 <= len(least.shown[0].frames) < 16 and least.length <= 500
    with pytest.raises(DataError, match=r"e0: \d+ tokens \(30600 visual\) exceed max_length=150 .*allow longer rows"):
        asked(minute, max_length=150)


def test_the_text_comes_first_and_media_share_the_rest(asked, minute):
    long = asked(minute, question="What happens? " * 300).sequence
    short = asked(minute).sequence
    assert len(long.shown[0].frames) < len(short.shown[0].frames) and long.length <= 8192
    three = asked(minute, minute, Media("video", minute.path, start=10.0, end=20.0)).sequence
    assert three.length <= 8192
    assert [len(shown.frames) for shown in three.shown] == [16, 16, 16]
    assert [shown.asked_frames for shown in three.shown] == [120, 120, 20] and three.shown[2].times[0] == 10.0


def test_questions_of_about_one_length_look_at_the_same_frames(drawing, minute):
    decoder = Watched()
    processor = drawing.processor(decoder, pixels=PixelOptions(), frames=FrameOptions(), cache_bytes=2**30)
    for question in ("What happens?", "What happens then?"):
        processor.prompt(drawing.example(media=(minute,), question=question))
    assert len(decoder.decoded) == 1


def test_times_that_are_said_count(asked, minute):
    found = asked(minute, timestamps="Of this video {:.1f} seconds have passed, and now: ").sequence
    assert found.length <= 8192 and 16 <= len(found.shown[0].frames) < 30


def test_what_fits_is_shown_as_ever(asked, minute):
    small = {"pixels": PixelOptions(video_max_pixels=100_352)}
    whole, strict = asked(minute, **small), asked(minute, **small, fit=FitOptions(rule="strict"))
    assert whole.decoded == strict.decoded == [(None, 100_352)]
    np.testing.assert_array_equal(whole.sequence.tokens, strict.sequence.tokens)
    exact = asked(minute, **small, max_length=whole.sequence.length).sequence
    assert exact.length == whole.sequence.length and exact.shown[0].asked_frames is None


def test_a_clip_of_fewer_frames_than_asked_for_gives_all_it_has(asked, minute):
    part = Media("video", minute.path, start=0.0, end=4.5)
    for odd in (FrameOptions(num_frames=9), FrameOptions(num_frames=9, sampler="uniform")):
        (shown,) = asked(part, frames=odd).sequence.shown
        assert len(shown.frames) == 8 and not shown.reduced, (
            "an odd number asks for the even one that the sampler takes"
        )
    (shown,) = asked(part, frames=FrameOptions(num_frames=16)).sequence.shown
    assert shown.frames == tuple(range(10)) and shown.asked_frames == 16
    with pytest.raises(VideoError, match=r"has 10 frames, 16 are asked for; .*frames.short=fewer"):
        asked(part, frames=FrameOptions(num_frames=16, short="refuse"))


def test_the_largest_patch_bucket_is_a_bound_too(asked, minute):
    batch = BatchOptions(4, (8192,), patch_buckets=(4 * 4 * 4080,), shards=4)
    options = VisionOptions(timestamps="", patch_buckets=batch.patch_buckets).processor(
        "direct", 8192, Path(), batch=batch
    )
    assert options.max_patches == 4 * 4080
    found = asked(minute, max_patches=options.max_patches).sequence
    assert len(found.shown[0].frames) == 16 and found.num_patches <= 4 * 4080


def test_a_long_clip_gives_the_frames_that_can_be_reached(asked, minute):
    """A frame is reached from the key frame before it, one in 20, or from the frame taken before it."""
    small = {"pixels": PixelOptions(video_max_pixels=100_352)}
    for frames in (119, 60, 30):
        found = asked(minute, **small, fit=FitOptions(most_decoded=frames * 854 * 480))
        (shown,) = found.sequence.shown
        assert 2 <= len(shown.frames) < 120 and shown.asked_frames == 120 and shown.frames[-1] == 119
        steps = np.diff([-1, *shown.frames])
        ways = np.minimum(steps, np.array(shown.frames) % 20 + 1)
        assert ways.sum() <= frames
    whole = asked(minute, **small, fit=FitOptions(most_decoded=854 * 480))
    assert len(whole.sequence.shown[0].frames) == 120, "fewer frames would spare nothing"
