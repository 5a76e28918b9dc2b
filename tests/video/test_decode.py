import time

import numpy as np
import pytest
from media_files import frame_numbers, numbered_frames, write_audio, write_video
from PIL import Image

from jvlmm.errors import ConfigError, VideoError
from jvlmm.video.budget import PixelOptions
from jvlmm.video.decode import decode_image, decode_video
from jvlmm.video.limits import Limits
from jvlmm.video.sampling import FrameOptions

BIG = {"height": 192, "width": 256}  # beyond what is decoded in one pass, with 200 frames


def take(count: int) -> FrameOptions:
    return FrameOptions(num_frames=count)


def test_frames_are_picked_by_number_with_their_times(tmp_path):
    path = write_video(tmp_path / "a.mp4", numbered_frames(16))
    clip = decode_video(path, take(4))
    assert clip.frames.shape == (4, 64, 96, 3)
    assert clip.frames.dtype == np.uint8
    assert clip.indices.tolist() == [0, 5, 10, 15]
    assert frame_numbers(clip.frames) == [0, 5, 10, 15]
    np.testing.assert_allclose(clip.times, [0, 0.5, 1.0, 1.5], atol=1e-9)
    assert clip.duration == pytest.approx(1.6)
    assert clip.fps == pytest.approx(2.5)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi", "a.ts"])
def test_seeking_finds_the_same_frames_as_decoding_everything(tmp_path, name):
    options = {"g": "24", "bf": "3"}
    path = write_video(tmp_path / name, numbered_frames(200, **BIG), options=options)
    clip = decode_video(path, take(10))
    assert clip.indices.tolist() == np.rint(np.linspace(0, 199, 10)).astype(int).tolist()
    assert frame_numbers(clip.frames) == [i % 16 for i in clip.indices]
    np.testing.assert_allclose(clip.times, clip.indices / 10, atol=2e-3)
    assert clip.duration == pytest.approx(20, abs=0.05)


def test_avi_frames_are_numbered_in_order_of_presentation(tmp_path):
    """AVI stores no presentation times: with B-frames those that FFmpeg reports for its packets are wrong."""
    path = write_video(tmp_path / "a.avi", numbered_frames(200, **BIG), options={"g": "24", "bf": "3"})
    clip = decode_video(path, take(2), end=0.3)
    assert clip.indices.tolist() == frame_numbers(clip.frames) == [0, 3]


def test_raw_streams_without_times_are_numbered_in_order(tmp_path):
    path = write_video(tmp_path / "a.h264", numbered_frames(30), options={"bf": "2"})
    clip = decode_video(path, take(4))
    assert clip.indices.tolist() == [0, 10, 19, 29]
    assert frame_numbers(clip.frames) == [0, 10, 3, 13]


@pytest.mark.parametrize("codec", ["libvpx", "libvpx-vp9"])
def test_hidden_frames_do_not_shift_the_numbers(tmp_path, codec):
    options = {"auto-alt-ref": "1", "lag-in-frames": "16", "cpu-used": "8", "deadline": "realtime"}
    path = write_video(tmp_path / "a.webm", numbered_frames(48), codec=codec, options=options)
    clip = decode_video(path, take(8))
    assert clip.indices[-1] == 47
    assert frame_numbers(clip.frames) == [i % 16 for i in clip.indices]


def test_variable_frame_rate_keeps_true_times(tmp_path):
    times = [0, 40, 80, 1000, 1040, 3000, 3040, 3080]
    path = write_video(tmp_path / "a.mkv", numbered_frames(8), milliseconds=times)
    clip = decode_video(path, take(8))
    np.testing.assert_allclose(clip.times, np.array(times) / 1000, atol=1e-9)
    part = decode_video(path, take(2), start=0.9, end=1.04)
    assert part.indices.tolist() == [3, 4]
    assert frame_numbers(part.frames) == [3, 4]


def test_a_span_is_sampled_by_its_own_length(tmp_path):
    path = write_video(tmp_path / "a.mp4", numbered_frames(100), rate=10)
    clip = decode_video(path, FrameOptions(), start=2.0, end=5.9)
    assert clip.indices[0] == 20
    assert clip.indices[-1] == 59
    assert len(clip.indices) == 8  # 4 s at 2 frames per second
    assert clip.fps == pytest.approx(2.0)
    assert frame_numbers(clip.frames) == [i % 16 for i in clip.indices]
    assert clip.duration == pytest.approx(10.0)
    with pytest.raises(VideoError, match=r"shows 0 frames between 20 and None s of 10.00 s"):
        decode_video(path, FrameOptions(), start=20)


@pytest.mark.parametrize(
    ("rotation", "mirrored", "corner"),
    [(0, False, "top left"), (90, False, "bottom left"), (180, False, "bottom right"), (-90, False, "top right")]
    + [(0, True, "top right")],
)
def test_rotation_and_mirror_flags_turn_frames_upright(tmp_path, rotation, mirrored, corner):
    path = write_video(tmp_path / "a.mp4", numbered_frames(4), rotation=rotation, mirrored=mirrored)
    frames = decode_video(path, take(2)).frames
    sideways = abs(rotation) == 90
    assert frames.shape == ((2, 96, 64, 3) if sideways else (2, 64, 96, 3))
    corners = {
        "top left": frames[0, 4, 4],
        "top right": frames[0, 4, -5],
        "bottom left": frames[0, -5, 4],
        "bottom right": frames[0, -5, -5],
    }
    assert max(corners, key=lambda name: corners[name].mean()) == corner


@pytest.mark.parametrize("colorspace", [1, 5])  # BT.709, BT.601
@pytest.mark.parametrize("color_range", [1, 2])  # limited, full
def test_colours_survive_their_matrix_and_range(tmp_path, colorspace, color_range):
    colours = np.array([[200, 40, 40], [40, 200, 40], [40, 40, 200], [255, 255, 255], [0, 0, 0]], np.uint8)
    frames = np.broadcast_to(colours[:, None, None], (5, 64, 64, 3)).copy()
    tags = {"colorspace": colorspace, "color_range": color_range}
    path = write_video(tmp_path / "a.mp4", frames, options={"qp": "0", "bf": "0"}, tags=tags)
    decoded = decode_video(path, FrameOptions(fps=100, max_frames=5)).frames
    np.testing.assert_allclose(decoded[:, 30, 30].astype(int), colours[[0, 1, 3, 4]], atol=6)


def test_ten_bit_video(tmp_path):
    path = write_video(tmp_path / "a.mp4", numbered_frames(8), pixel_format="yuv420p10le")
    assert frame_numbers(decode_video(path, take(4)).frames) == [0, 2, 5, 7]


def test_animated_gif_is_a_video_and_a_cut_one_is_refused(tmp_path):
    pictures = [Image.fromarray(frame) for frame in numbered_frames(12)]
    path = tmp_path / "a.gif"
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=100, loop=0)
    clip = decode_video(path, take(4))
    assert frame_numbers(clip.frames) == [0, 4, 7, 11]
    np.testing.assert_allclose(clip.times, [0, 0.4, 0.7, 1.1], atol=1e-9)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(VideoError, match="is cut short"):
        decode_video(path, take(4))


def test_frames_come_back_within_the_pixel_budget(tmp_path):
    path = write_video(tmp_path / "a.mp4", numbered_frames(8, height=240, width=320))
    pixels = PixelOptions(video_min_pixels=28 * 28, video_max_pixels=56 * 84)
    whole, small = decode_video(path, take(4)), decode_video(path, take(4), pixels=pixels)
    assert small.frames.shape == (4, 56, 56, 3)
    expected = Image.fromarray(whole.frames[2]).resize((56, 56), Image.Resampling.BICUBIC)
    assert np.array_equal(small.frames[2], np.asarray(expected))


def one_line_error(path, call, *args, **options) -> str:
    with pytest.raises(VideoError) as caught:
        call(path, *args, **options)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert ";" in message  # the remedy
    return message


@pytest.mark.parametrize("call", [decode_video, decode_image])
def test_paths_that_are_no_files(tmp_path, call):
    empty = tmp_path / "empty.mp4"
    empty.touch()
    text = tmp_path / "text.mp4"
    text.write_text("not a video" * 100)
    assert "no such file" in one_line_error(tmp_path / "missing.mp4", call)
    assert "is a directory" in one_line_error(tmp_path, call)
    assert "is not a regular file" in one_line_error("/dev/zero", call)
    assert "is empty" in one_line_error(empty, call)
    assert "is no readable" in one_line_error(text, call)


def test_audio_alone_one_frame_and_no_frame(tmp_path):
    assert "no video stream (only audio)" in one_line_error(write_audio(tmp_path / "a.mp4"), decode_video)
    one = write_video(tmp_path / "one.mp4", numbered_frames(1))
    assert "has 1 frame, a video needs at least 2" in one_line_error(one, decode_video)
    none = write_video(tmp_path / "none.mkv", numbered_frames(0))
    one_line_error(none, decode_video)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
@pytest.mark.parametrize("share", [0.95, 0.6, 0.3, 0.01])
def test_truncated_files_never_become_shorter_samples(tmp_path, name, share):
    noise = np.random.default_rng(0).integers(0, 256, (120, 64, 96, 3), np.uint8)
    options = {"movflags": "+faststart"}
    with_index_first = write_video(tmp_path / name, noise, options=options)
    data = with_index_first.read_bytes()
    with_index_first.write_bytes(data[: int(len(data) * share)])
    one_line_error(with_index_first, decode_video)


def test_damaged_pictures_are_refused(tmp_path):
    rng = np.random.default_rng(0)
    path = write_video(tmp_path / "a.mp4", rng.integers(0, 256, (60, 64, 96, 3), np.uint8), options={"threads": "1"})
    whole, refused = path.read_bytes(), 0
    for at in range(20_000, 180_000, 20_000):
        path.write_bytes(whole[:at] + rng.bytes(400) + whole[at + 400 :])
        try:
            decode_video(path, FrameOptions(num_frames=2))
        except VideoError as error:
            refused += "damaged" in str(error) or "cannot be decoded" in str(error)
    assert refused >= 2  # H.264 has no checksums: many errors decode to something


def test_limits_are_checked_before_pixels_are_decoded(tmp_path):
    wide = write_video(tmp_path / "wide.mkv", np.zeros((2, 16, 20_000, 3), np.uint8), codec="ffv1")
    assert "is 20000x16 pixels, a side may have 16384" in one_line_error(wide, decode_video)
    path = write_video(tmp_path / "a.mp4", numbered_frames(20))
    assert "a frame may have 100 in all" in one_line_error(path, decode_video, take(4), Limits(max_pixels=100))
    assert "8 frames are asked for, the limit is 6" in one_line_error(path, decode_video, take(8), Limits(max_frames=6))
    assert "over the limit of 9999 pixels" in one_line_error(path, decode_video, take(4), Limits(max_clip_pixels=9999))
    picture = tmp_path / "wide.png"
    Image.new("RGB", (20_000, 10)).save(picture)
    assert "a side may have 16384" in one_line_error(picture, decode_image)
    with pytest.raises(ConfigError, match="limits.max_frames=0"):
        Limits(max_frames=0)


def test_aspect_ratio_beyond_the_model_is_named(tmp_path):
    thin = write_video(tmp_path / "thin.mkv", np.zeros((4, 16, 4000, 3), np.uint8), codec="ffv1")
    message = one_line_error(thin, decode_video, take(2), pixels=PixelOptions())
    assert "aspect ratio must be at most 200" in message


def test_images_are_upright_and_rgb(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    image = Image.fromarray(picture)
    exif = image.getexif()
    exif[0x0112] = 6  # the first row is on the right
    image.save(tmp_path / "a.png", exif=exif)
    clip = decode_image(tmp_path / "a.png")
    assert np.array_equal(clip.frames[0], np.rot90(picture, -1))
    assert clip.times.tolist() == [0.0]
    assert clip.duration == clip.fps == 0
    Image.fromarray(picture[..., 0]).save(tmp_path / "grey.png")
    assert decode_image(tmp_path / "grey.png").frames.shape == (1, 20, 30, 3)
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    one_line_error(tmp_path / "cut.png", decode_image)


def test_small_files_take_the_quick_way(tmp_path):
    path = write_video(tmp_path / "a.mp4", numbered_frames(16, 56, 56))
    decode_video(path, take(16))
    best = 1.0
    for _ in range(20):
        start = time.process_time()
        decode_video(path, take(16))
        best = min(best, time.process_time() - start)
    assert best < 0.01  # about 2 ms
