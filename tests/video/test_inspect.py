import json

import numpy as np
import pytest
from media_files import numbered_frames, write_audio, write_video
from PIL import Image

from jvlmm.errors import VideoError
from jvlmm.video.inspect import format_inspection, inspect_media
from jvlmm.video.probe import probe
from jvlmm.video.sampling import FrameOptions


def test_inspection_of_a_video(tmp_path):
    path = write_video(tmp_path / "a.mp4", numbered_frames(16, height=64, width=96), rotation=-90)
    record = json.loads(json.dumps(inspect_media(path, FrameOptions(num_frames=4))))
    assert record["kind"] == "video"
    assert record["streams"] == [
        {
            "index": 0,
            "type": "video",
            "codec": "h264",
            "width": 96,
            "height": 64,
            "fps": 10.0,
            "frames": 16,
            "pixel_format": "yuv420p",
            "duration": 1.6,
        }
    ]
    assert (record["stream"], record["rotation"], record["mirrored"]) == (0, 90, False)
    assert (record["height"], record["width"], record["duration"]) == (96, 64, pytest.approx(1.6))
    used = record["used"]
    assert used["indices"] == [0, 5, 10, 15]
    assert used["times"] == [0, 0.5, 1.0, 1.5]
    assert (used["height"], used["width"], used["grid"]) == (392, 280, [2, 28, 20])
    assert used["visual_tokens"] == 2 * 28 * 20 // 4
    assert used["seconds_per_grid"] == pytest.approx(0.8)
    text = format_inspection(record)
    assert "turned 90° clockwise" in text
    assert "280 visual tokens" in text


def test_inspection_of_an_image(tmp_path):
    image = Image.fromarray(np.zeros((200, 300, 3), np.uint8))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.jpg", exif=exif)
    record = inspect_media(tmp_path / "a.jpg")
    assert (record["kind"], record["codec"], record["rotation"]) == ("image", "jpeg", 90)
    assert (record["height"], record["width"]) == (300, 200)
    assert record["used"]["grid"] == [1, 22, 14]
    assert record["used"]["visual_tokens"] == 77
    assert "77 visual tokens" in format_inspection(record)


def test_several_streams_and_the_choice_between_them(real_data):
    path = real_data / "videos/nasa_13013.mp4"
    info = probe(path)
    assert [s.type for s in info.streams] == ["video", "audio", "subtitle", "video", "audio", "subtitle"]
    assert (info.stream, info.width, info.height, info.frames) == (3, 480, 270, 390)
    other = probe(path, stream=0)
    assert (other.stream, other.width, other.height, other.frames, other.fps) == (0, 320, 180, 325, 25.0)
    with pytest.raises(VideoError, match="stream 1 is no video stream; choose one of 0, 3"):
        probe(path, stream=1)


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(VideoError, match="has no video stream"):
        inspect_media(write_audio(tmp_path / "a.m4a"))
    with pytest.raises(VideoError, match="no such file"):
        inspect_media(tmp_path / "missing.mp4")
