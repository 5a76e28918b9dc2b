"""Clips damaged at random: each is refused, or gives what the whole clip or FFmpeg's strict reading gives.

By default a share of the seeds runs; JVLMM_DAMAGED_CLIPS=300 runs as many as it says.
"""

import os
from collections import Counter

import pytest
from damaged_clips import damage, strict_reading, verdict, whole_clips

from jvlmm.video.workers import Decoder

SEEDS = int(os.environ.get("JVLMM_DAMAGED_CLIPS", "44"))
REAL = ("nasa_13013.mp4", "flipping_a_pancake.mkv", "tempcompass_1021488277.gif")


@pytest.mark.parametrize("real", [False, True])
def test_damaged_clips_are_refused_or_read_as_ffmpeg_reads_them_strictly(tmp_path, request, real):
    folder = request.getfixturevalue("real_data") / "videos" if real else None
    clips = [folder / name for name in REAL] if folder else whole_clips(tmp_path)
    originals = {clip: strict_reading(clip) for clip in clips}
    outcomes, bad = Counter(), []
    with Decoder(workers=1) as decoder:
        for clip, original in originals.items():
            assert original.error is None
            assert verdict(decoder, clip, original) == ("whole", "")
        for seed in range(SEEDS // 4 if real else SEEDS - SEEDS // 4):
            clip = clips[seed % len(clips)]
            done, data = damage(clip.read_bytes(), seed)
            path = tmp_path / f"damaged_{clip.name}"
            path.write_bytes(data)
            outcome, reason = verdict(decoder, path, originals[clip])
            outcomes[clip.name, done.split()[0], outcome] += 1
            if outcome in ("silent", "hang"):
                bad.append(f"seed {seed}, {clip.name}, {done}: {outcome} ({reason})")
    print("\n".join(f"{' '.join(key)}: {count}" for key, count in sorted(outcomes.items())))
    assert not bad, bad


def test_a_frame_lost_of_an_avi_without_times_is_noticed(tmp_path):
    """It would move the times of all frames after it."""
    clip = next(clip for clip in whole_clips(tmp_path) if clip.name == "h264.avi")
    path = tmp_path / "damaged.avi"
    kind, data = damage(clip.read_bytes(), 86)
    path.write_bytes(data)
    with Decoder(workers=1) as decoder:
        assert kind.startswith("removed")
        assert verdict(decoder, path, strict_reading(clip))[0] == "refused"
