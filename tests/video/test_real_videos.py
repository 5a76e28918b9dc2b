"""Videos from the wild: what other decoders stumble over."""

import av
import numpy as np
import pytest

from jvlmm.video.budget import PixelOptions
from jvlmm.video.decode import decode_video
from jvlmm.video.patches import resize_frames, to_patches
from jvlmm.video.sampling import FrameOptions
from jvlmm.video.workers import Decoder

EXPECTED = {  # frames, (height, width) upright, seconds
    "nasa_13013.mp4": (390, (270, 480), 13.013),
    "flipping_a_pancake.mkv": (310, (240, 426), 10.333),
    "unordered.mov": (4, (50, 50), 0.125),
    "video_90.mov": (3, (568, 320), 0.1),
    "h264_10bits.mp4": (30, (200, 200), 1.0),
    "bt709_full_range.mp4": (30, (720, 1280), 1.0),
    "tempcompass_1021488277.gif": (65, (168, 298), 8.12),
    "tempcompass_1021488277_reverse.gif": (65, (168, 304), 8.12),
}


def test_the_folder_holds_what_is_expected(real_data):
    assert {path.name for path in (real_data / "videos").iterdir()} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_every_video_is_decoded_sampled_and_cut_into_patches(real_data, name):
    frames, size, seconds = EXPECTED[name]
    clip = decode_video(real_data / "videos" / name)
    assert clip.indices[0] == 0
    assert clip.indices[-1] == frames - 1
    assert clip.frames.shape[1:3] == size
    assert clip.duration == pytest.approx(seconds, abs=2e-3)
    assert clip.times[0] == 0
    assert np.all(np.diff(clip.times) > 0)
    patches = to_patches(clip, (56, 56))
    assert patches.grid == (len(clip.indices) // 2, 4, 4)
    assert patches.seconds_per_grid == pytest.approx(2 / clip.fps)


@pytest.mark.parametrize("name", EXPECTED)
def test_sampled_frames_are_those_of_a_plain_pass(real_data, name):
    """Seeking and skipping must give, to the byte, what decoding the file from its start gives."""
    path = real_data / "videos" / name
    clip = decode_video(path, FrameOptions(num_frames=2 if EXPECTED[name][0] < 4 else 4))
    with av.open(str(path)) as container:
        frames = list(container.decode(container.streams.best("video")))
    assert len(frames) == EXPECTED[name][0]
    for at, index in enumerate(clip.indices):
        expected = frames[index].to_ndarray(format="rgb24")
        if name == "video_90.mov":
            expected = np.rot90(expected, -1)
        assert np.array_equal(clip.frames[at], expected)
        assert clip.times[at] == pytest.approx(frames[index].time - frames[0].time)


def test_the_two_gifs_are_mirror_images_in_time(real_data):
    folder, options = real_data / "videos", FrameOptions(sampler="uniform", num_frames=64)
    forward = decode_video(folder / "tempcompass_1021488277.gif", options, start=0.05)  # the first frame has no partner
    backward = decode_video(folder / "tempcompass_1021488277_reverse.gif", options, start=0.05)
    ours, theirs = (resize_frames(clip.frames, (84, 140)).astype(np.float32) for clip in (forward, backward))
    mirrored = np.abs(ours - theirs[::-1]).mean()
    assert mirrored < 5  # grey levels: palettes and sizes differ
    assert np.abs(ours - theirs).mean() > 4 * mirrored
    assert np.abs(ours[1:] - theirs[::-1][:-1]).mean() > 1.5 * mirrored  # one frame off is visible


def test_the_rotated_video_stands_upright(real_data):
    """The flag says a quarter turn clockwise: the stored left edge becomes the top."""
    path = real_data / "videos/video_90.mov"
    clip = decode_video(path, FrameOptions(num_frames=2))
    with av.open(str(path)) as container:
        stored = next(container.decode(video=0)).to_ndarray(format="rgb24")
    assert np.array_equal(clip.frames[0][0], stored[::-1, 0])


def test_full_range_bt709_is_converted_by_its_own_matrix(real_data):
    path = real_data / "videos/bt709_full_range.mp4"
    clip = decode_video(path, FrameOptions(num_frames=2))
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
    planes = [
        np.frombuffer(p, np.uint8).reshape(p.height, p.line_size)[:, : p.width].astype(float) for p in frame.planes
    ]
    y, cb, cr = planes[0], *(np.kron(plane - 128, np.ones((2, 2))) for plane in planes[1:])
    red, blue = y + 1.5748 * cr, y + 1.8556 * cb  # ITU-R BT.709-6, full range
    green = (y - 0.2126 * red - 0.0722 * blue) / 0.7152
    expected = np.clip(np.stack([red, green, blue], axis=-1), 0, 255)
    assert np.abs(clip.frames[0] - expected).mean() < 1.5


def test_the_selected_stream_of_several_is_used(real_data):
    clip = decode_video(real_data / "videos/nasa_13013.mp4", FrameOptions(num_frames=4), stream=0)
    assert clip.frames.shape == (4, 180, 320, 3)
    assert clip.indices.tolist() == [0, 108, 216, 324]
    np.testing.assert_allclose(clip.times, clip.indices / 25, atol=1e-6)


def test_workers_decode_all_of_them_within_the_budget(real_data):
    with Decoder(workers=1) as decoder:
        for name in EXPECTED:
            clip = decoder.video(real_data / "videos" / name, pixels=PixelOptions())
            height, width = clip.frames.shape[1:3]
            assert height % 28 == width % 28 == 0
            assert height * width <= 768 * 784


@pytest.mark.parametrize("name", [n for n in EXPECTED if not n.endswith("unordered.mov")])
def test_mutilated_files_cost_one_line_each(real_data, tmp_path, name):
    data = (real_data / "videos" / name).read_bytes()
    rng = np.random.default_rng(len(data))
    with Decoder(workers=1) as decoder:
        for trial in range(6):
            damaged = bytearray(data[: rng.integers(len(data))] if trial % 2 else data)
            at = int(rng.integers(len(damaged)))
            damaged[at : at + 500] = rng.bytes(min(500, len(damaged) - at))
            path = tmp_path / f"{trial}{name[-4:]}"
            path.write_bytes(damaged)
            try:
                decoder.video(path, FrameOptions(num_frames=2))
            except Exception as error:
                assert type(error).__name__ == "VideoError"
                assert str(error).startswith(f"{path}: ")
                assert "\n" not in str(error)
