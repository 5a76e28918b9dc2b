"""When frames are shown, of streams whose packets leave something out."""

from fractions import Fraction
from types import SimpleNamespace

import numpy as np

from jvlmm.video.timeline import scan_packets


def test_of_a_stream_without_marked_key_frames_only_the_first_frame_can_be_begun_with():
    packets = [
        SimpleNamespace(size=1, is_discard=False, is_corrupt=False, is_keyframe=False, pts=pts, duration=40)
        for pts in (0, 40, 80, 120)
    ]
    container = SimpleNamespace(
        format=SimpleNamespace(name="mov,mp4"), demux=lambda stream: iter(packets), streams=[None], duration=None
    )
    stream = SimpleNamespace(
        codec_context=SimpleNamespace(has_b_frames=False),
        time_base=Fraction(1, 1000),
        average_rate=Fraction(25),
        duration=160,
        frames=4,
        metadata={},
        start_time=0,
    )
    timeline = scan_packets(container, stream)
    np.testing.assert_array_equal(timeline.keyframes, [0])
    assert timeline.key_before(3) == 0 and timeline.duration == 0.16
