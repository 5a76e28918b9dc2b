"""Media that are whole although they look cut, and media that are cut although they look whole."""

import av
import numpy as np
import pytest
from damaged_clips import moving_picture
from media_files import frame_numbers, numbered_frames, write_video
from PIL import Image

from jvlmm.errors import VideoError
from jvlmm.video.decode import decode_image, decode_video
from jvlmm.video.gif import check_gif
from jvlmm.video.inspect import inspect_media
from jvlmm.video.probe import probe
from jvlmm.video.sampling import FrameOptions

FOUR = FrameOptions(num_frames=4)
GIF_TIMES = [0, 0.04, 0.08, 0.48, 0.88, 0.92, 1.92, 1.96, 2.0, 2.2, 2.4, 2.44]  # and 2.74 s long
GIF_DURATIONS = [40, 40, 400, 400, 40, 1000, 40, 40, 200, 200, 40, 300]


def write_late(path, start: float, codec: str, with_audio: bool):
    """40 frames at 25 per second from `start` seconds on, beside a tone from 0 s on."""
    options = {"deadline": "realtime", "cpu-used": "8"} if "vpx" in codec else {}
    with av.open(str(path), "w") as container:
        video = container.add_stream(codec, rate=25, options=options)
        video.width, video.height, video.pix_fmt = 96, 64, "yuv420p"
        if with_audio:
            audio = container.add_stream("libopus", rate=48_000, layout="mono")
            tone = av.AudioFrame.from_ndarray(np.zeros((1, 48_000), np.float32), format="fltp", layout="mono")
            tone.sample_rate, tone.pts = 48_000, 0
            container.mux(audio.encode(tone))
        for number, picture in enumerate(numbered_frames(40)):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = number + round(start * 25)
            container.mux(video.encode(frame))
        container.mux(video.encode())
        if with_audio:
            container.mux(audio.encode())
    return path


@pytest.mark.parametrize(
    ("name", "codec", "start", "with_audio"),
    [("a.mkv", "libx264", 2.0, True), ("a.webm", "libvpx-vp9", 0.52, True), ("a.mkv", "libx264", 60.0, False)],
)
def test_matroska_tells_the_end_of_a_stream_that_starts_late(tmp_path, name, codec, start, with_audio):
    path = write_late(tmp_path / name, start, codec, with_audio)
    clip = decode_video(path, FOUR)
    assert clip.indices.tolist() == [0, 13, 26, 39]
    assert frame_numbers(clip.frames) == [0, 13, 10, 7]
    np.testing.assert_allclose(clip.times, clip.indices / 25, atol=2e-3)
    assert clip.duration == pytest.approx(1.6, abs=0.01)
    assert probe(path).duration == pytest.approx(1.6, abs=0.05)
    data = path.read_bytes()
    for share in (0.9, 0.6, 0.4):
        path.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(VideoError, match="is cut short|is damaged"):
            decode_video(path, FOUR)


@pytest.mark.parametrize("damage", ["zeroed", "inserted", "removed"])
def test_a_hole_in_matroska_is_found(tmp_path, damage):
    """FFmpeg goes on at the next cluster: 40 of 100 frames were gone, and times were off by seconds."""
    path = write_video(tmp_path / "a.mkv", moving_picture(200, 96, 128, seed=1), rate=25, options={"g": "25"})
    data = path.read_bytes()
    at, size = len(data) // 3, 2000
    for moved in range(0, 400, 57):
        start = at + moved
        there = {"zeroed": bytes(size), "inserted": bytes(range(256)) * 8, "removed": b""}[damage]
        path.write_bytes(data[:start] + there + data[start + (0 if damage == "inserted" else size) :])
        with pytest.raises(VideoError, match="is damaged|is cut short"):
            decode_video(path, FOUR)


def test_matroska_written_to_a_pipe_has_sizes_that_are_not_known(tmp_path):
    path = write_video(tmp_path / "a.mkv", numbered_frames(200, 192, 256), options={"g": "20"})
    data = bytearray(path.read_bytes())
    for kind in (b"\x18\x53\x80\x67", b"\x1f\x43\xb6\x75"):  # Segment, Cluster
        at = data.find(kind)
        while at >= 0:
            length = 9 - data[at + 4].bit_length()
            data[at + 4 : at + 4 + length] = ((1 << (7 * length + 1)) - 1).to_bytes(length, "big")
            at = data.find(kind, at + 4)
    path.write_bytes(data)
    clip = decode_video(path, FOUR)
    assert clip.indices.tolist() == [0, 66, 133, 199]
    assert frame_numbers(clip.frames) == [i % 16 for i in clip.indices]


@pytest.fixture
def gif(tmp_path):
    pictures = [Image.fromarray(picture) for picture in moving_picture(12, 72, 96, seed=2)]
    path = tmp_path / "a.gif"
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=GIF_DURATIONS, loop=0)
    return path


@pytest.mark.parametrize("after", [b"", b"\n", b"junk" * 50, b";\0\0", bytes(300)])
def test_bytes_after_the_trailer_of_a_gif_are_ignored(gif, after):
    gif.write_bytes(gif.read_bytes() + after)
    clip = decode_video(gif, FrameOptions(num_frames=12))
    np.testing.assert_allclose(clip.times, GIF_TIMES, atol=1e-6)
    assert clip.duration == pytest.approx(2.74)
    with Image.open(gif) as image:
        for number, frame in enumerate(clip.frames):
            image.seek(number)
            assert np.array_equal(frame, np.asarray(image.convert("RGB")))


def test_a_gif_without_its_trailer_may_lack_frames_and_says_so(gif):
    gif.write_bytes(gif.read_bytes()[:-1])
    with pytest.raises(VideoError, match="ends without the trailer of a GIF, frames may be missing"):
        decode_video(gif, FOUR)


@pytest.mark.parametrize("size", [16, 64])
@pytest.mark.parametrize("how", ["replaced", "inserted"])
def test_a_gif_damaged_in_its_middle_is_refused(gif, how, size):
    """FFmpeg stops at the first byte that begins no block, and takes what it has for all there is."""
    data, rng = gif.read_bytes(), np.random.default_rng(size)
    refused = unnoticed = 0
    for at in range(2000, len(data) - size - 10, len(data) // 40):
        gif.write_bytes(data[:at] + rng.bytes(size) + data[at + (size if how == "replaced" else 0) :])
        try:
            clip = decode_video(gif, FrameOptions(num_frames=12))
        except VideoError as error:
            refused += "is damaged" in str(error) or "is cut short" in str(error)
        else:  # some colours of a palette are others, which no reader can know
            np.testing.assert_allclose(clip.times, GIF_TIMES, atol=1e-6)
            unnoticed += 1
    assert refused > unnoticed


@pytest.mark.parametrize("kind", ["noise", "flat", "slope"])
def test_the_pixels_of_any_gif_are_counted(tmp_path, kind):
    rng, path = np.random.default_rng(0), tmp_path / "a.gif"
    for number in range(12):
        height, width = (int(side) for side in rng.integers(1, 300, 2))
        colors = int(rng.integers(2, 257))
        slope = np.add.outer(np.arange(height), np.arange(width)) // 5 % colors
        flat = np.full((height, width), colors - 1)
        noise = rng.integers(0, colors, (height, width))
        image = Image.fromarray({"noise": noise, "flat": flat, "slope": slope}[kind].astype(np.uint8))
        image.putpalette(rng.bytes(3 * colors))
        image.save(path, interlace=number % 2)
        assert check_gif(path) == 1


def test_a_transport_stream_may_begin_within_a_group_of_pictures(tmp_path):
    """As recordings do: what comes before the first key frame cannot be decoded, and is no damage."""
    options = {"g": "15", "bf": "2", "keyint_min": "15", "sc_threshold": "0"}
    path = write_video(tmp_path / "a.ts", numbered_frames(100, 192, 256), options=options)
    data = path.read_bytes()
    packets = [data[at : at + 188] for at in range(0, len(data), 188)]
    # Leave out the packets of the pictures up to the middle of the first group, but for the tables.
    with av.open(str(path)) as container:
        stamps = [(packet.pos, packet.is_keyframe) for packet in container.demux(video=0) if packet.size]
    middle = stamps[7][0] // 188
    kept = b"".join(packets[:3]) + b"".join(packets[middle:])
    path.write_bytes(kept)
    clip = decode_video(path, FOUR)
    assert len(set(clip.indices.tolist())) == 4
    assert clip.indices[-1] == 84
    assert frame_numbers(clip.frames) == [(15 + i) % 16 for i in clip.indices]
    assert clip.times[0] == 0
    # What is missing later is damage.
    for at in range(len(kept) // 188 // 2, len(kept) // 188 // 2 + 10):
        path.write_bytes(kept[: at * 188] + kept[(at + 5) * 188 :])
        with pytest.raises(VideoError, match="is damaged"):
            decode_video(path, FOUR)


def test_animated_webp_is_a_video(tmp_path):
    pictures = [Image.fromarray(picture) for picture in moving_picture(12, 72, 96, seed=2)]
    path = tmp_path / "a.webp"
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=GIF_DURATIONS, lossless=True)
    clip = decode_video(path, FrameOptions(num_frames=12))
    np.testing.assert_allclose(clip.times, GIF_TIMES, atol=1e-6)
    assert clip.duration == pytest.approx(2.74)
    assert np.array_equal(clip.frames[5], np.asarray(pictures[5]))
    assert np.array_equal(decode_video(path, FrameOptions(num_frames=2), start=0.05, end=0.5).frames[0], pictures[2])
    record = inspect_media(path, FOUR)
    assert (record["kind"], record["codec"], record["frames"], record["width"]) == ("video", "webp", 12, 96)
    data = path.read_bytes()
    for wrong in (data[:-40], data[: len(data) // 2], data[:60] + b"\0" * 64 + data[124:]):
        path.write_bytes(wrong)
        with pytest.raises(VideoError, match="is cut short|is damaged"):
            decode_video(path, FOUR)
    pictures[0].save(path)
    with pytest.raises(VideoError, match=r"a still WebP picture\); use it as an image"):
        decode_video(path, FOUR)


def boxed(mode: str) -> Image.Image:
    """A box of black, all around it black that is not to be seen."""
    alpha = np.zeros((84, 112), np.uint8)
    alpha[20:60, 30:80] = 255
    image = Image.merge("LA", [Image.new("L", (112, 84)), Image.fromarray(alpha)])
    if mode == "P":
        image = Image.fromarray((alpha == 0).astype(np.uint8))
        image.putpalette([0, 0, 0, 0, 0, 0])
        image.info["transparency"] = 1
        return image
    return image.convert(mode)


@pytest.mark.parametrize(("mode", "name"), [("RGBA", "a.png"), ("LA", "a.png"), ("P", "a.png"), ("RGBA", "a.webp")])
def test_transparent_pictures_lie_on_white(tmp_path, mode, name):
    image = boxed(mode)
    image.save(tmp_path / name, **({"lossless": True, "exact": True} if name == "a.webp" else {}))
    frame = decode_image(tmp_path / name).frames[0]
    assert np.all(frame[20:60, 30:80] == 0)
    frame[20:60, 30:80] = 255
    assert np.all(frame == 255)


def test_half_transparent_pixels_are_mixed_as_pillow_mixes_them(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 4), np.uint8)
    image = Image.fromarray(pixels)
    image.save(tmp_path / "a.png")
    ground = Image.new("RGB", image.size, (255, 255, 255))
    ground.paste(image, mask=image.split()[3])  # as qwen_vl_utils does
    assert np.array_equal(decode_image(tmp_path / "a.png").frames[0], np.asarray(ground))


def test_videos_with_transparency_lie_on_white(tmp_path):
    pictures = [boxed("RGBA").rotate(90 * number) for number in range(4)]
    pictures[0].save(tmp_path / "a.png", save_all=True, append_images=pictures[1:], duration=100)
    frames = decode_video(tmp_path / "a.png", FOUR).frames
    for picture, frame in zip(pictures, frames, strict=True):
        assert np.array_equal(frame, 255 - np.repeat(np.asarray(picture)[..., 3:], 3, axis=-1))


@pytest.mark.parametrize("name", ["a.png", "a.tiff"])
def test_grey_of_16_bits_keeps_its_high_byte(tmp_path, name):
    ramp = np.linspace(0, 65535, 256 * 16).astype(np.uint16).reshape(16, 256)
    Image.fromarray(ramp).save(tmp_path / name)
    frame = decode_image(tmp_path / name).frames[0]
    assert np.array_equal(frame, np.repeat((ramp >> 8).astype(np.uint8)[..., None], 3, axis=-1))
    assert len(np.unique(frame)) == 256


def test_numbers_without_a_white_are_refused(tmp_path):
    Image.fromarray(np.zeros((8, 8), np.float32)).save(tmp_path / "a.tiff")
    with pytest.raises(VideoError, match="floating-point numbers, whose white is not known; save it with 8 bits"):
        decode_image(tmp_path / "a.tiff")
