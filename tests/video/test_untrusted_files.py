"""Files made to make a decoder read other files, or take more than its share of memory and time."""

import numpy as np
import pytest
from media_files import claim_samples, frame_numbers, numbered_frames, write_video
from PIL import Image

from jvlmm.errors import VideoError
from jvlmm.video import source
from jvlmm.video.decode import decode_image, decode_video
from jvlmm.video.limits import Limits
from jvlmm.video.sampling import FrameOptions
from jvlmm.video.workers import Decoder

TWO = FrameOptions(num_frames=2)


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
    """A video that no dataset names."""
    return write_video(tmp_path_factory.mktemp("outside") / "secret.ts", numbered_frames(30), rate=10)


PLAYLISTS = {
    "evil.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\n{outside}\n#EXT-X-ENDLIST\n",
    "url.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\nfile://{outside}\n#EXT-X-ENDLIST\n",
    "evil.ffconcat": "ffconcat version 1.0\nfile '{outside}'\n",
    "evil.mp4": "ffconcat version 1.0\nfile {outside}\n",
    "evil.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
    "evil.mpd": '<?xml version="1.0"?>\n<MPD type="static"><BaseURL>{outside}</BaseURL></MPD>\n',
    "tty.txt": "the quick brown fox\n" * 200,
    "ansi.txt": "\x1b[31mred\x1b[0m\n" * 200,
    "a.srt": "1\n00:00:00,000 --> 00:00:02,000\nwords\n\n" * 20,
    "a.html": "<!DOCTYPE html><html><body>404</body></html>",
}


@pytest.mark.parametrize("name", PLAYLISTS)
def test_playlists_and_text_are_no_videos(tmp_path, outside, name):
    path = tmp_path / name
    path.write_text(PLAYLISTS[name].format(outside=outside))
    with Decoder(workers=1) as decoder, pytest.raises(VideoError, match=r"is no readable video \(it is "):
        decoder.video(path, TWO)
    with pytest.raises(VideoError, match=r"is no readable image \(it is "):
        decode_image(path)


def test_what_text_is_gets_named(tmp_path):
    (tmp_path / "html.jpg").write_text("  <html><head></head>not found</html>")
    (tmp_path / "lfs.mp4").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    for name, kind in (("html.jpg", "an HTML page"), ("lfs.mp4", "a pointer of Git LFS")):
        with pytest.raises(VideoError, match=f"it is {kind}"):
            decode_video(tmp_path / name)


def test_a_playlist_behind_bytes_that_are_no_text_is_refused_by_its_format(tmp_path, outside):
    """The list of formats holds where the first look does not see that a file is text."""
    path = tmp_path / "evil.m3u8"
    path.write_bytes(f"#EXTM3U\n#EXTINF:3,\n{outside}\n#EXT-X-ENDLIST\n".encode() + b"\x00\xff\xfe")
    with pytest.raises(VideoError, match="is no readable video"):
        decode_video(path, TWO)


def test_patterns_in_names_are_names(tmp_path):
    for number in range(4):
        Image.fromarray(numbered_frames(4)[number]).save(tmp_path / f"frame{number}.png")
    for name in ("frame%d.png", "frame*.png", "concat:frame0.png|frame1.png"):
        with pytest.raises(VideoError, match="no such file"):
            decode_video(tmp_path / name, TWO)
    (tmp_path / "frame%d.png").write_bytes((tmp_path / "frame0.png").read_bytes())
    with pytest.raises(VideoError, match=r"a still PNG picture\); use it as an image"):
        decode_video(tmp_path / "frame%d.png", TWO)


def test_a_track_kept_in_another_file_is_not_followed(tmp_path, outside):
    """QuickTime's data references: `url ` with the flag "in this file" cleared, and a path."""
    path = write_video(tmp_path / "a.mov", numbered_frames(16))
    data = bytearray(path.read_bytes())
    at = data.index(b"url ")
    data[at : at + 8] = b"alis\0\0\0\0"
    path.write_bytes(data)
    try:
        clip = decode_video(path, TWO)
    except VideoError:
        return
    assert frame_numbers(clip.frames) == [0, 15]  # its own


@pytest.mark.parametrize("workers", [0, 1])
def test_more_samples_than_bytes_are_refused(tmp_path, workers):
    path = claim_samples(write_video(tmp_path / "a.mp4", numbered_frames(6), options={"bf": "0"}), 2_000_000)
    with Decoder(workers) as decoder, pytest.raises(VideoError, match=r"claims 2000000 frames in \d+ bytes"):
        decoder.video(path, TWO)


def test_a_worker_takes_no_more_memory_than_it_may(tmp_path):
    Image.new("RGB", (6000, 5000)).save(tmp_path / "a.png")  # 90 MB of pixels
    long = write_video(tmp_path / "a.mp4", numbered_frames(60, 960, 1280), options={"preset": "ultrafast"})
    whole = write_video(tmp_path / "b.mp4", numbered_frames(16))
    with Decoder(workers=1, limits=Limits(max_memory=180 * 2**20)) as decoder:
        decoder.video(whole, TWO)
        process = decoder._workers[0].process.pid
        needs = pytest.raises(VideoError, match=r"needs more memory than one file may take.*raise limits.max_memory")
        with needs:
            decoder.image(tmp_path / "a.png")
        with needs:
            decoder.video(long, FrameOptions(num_frames=60))
        assert decoder.video(whole, TWO).frames.shape == (2, 64, 96, 3)
        assert decoder._workers[0].process.pid == process


@pytest.mark.parametrize("name", ["a.mp4", "a.avi"])
def test_frames_beyond_the_headers_count_are_not_kept(tmp_path, name, monkeypatch):
    """A header that tells of one large frame, before many: no more are held than the header tells."""
    path = write_video(tmp_path / name, numbered_frames(60, 480, 640), codec="mpeg4", options={"g": "10"})
    if name == "a.avi":
        data = bytearray(path.read_bytes())
        for box, offset in ((b"avih", 24), (b"strh", 40)):  # dwTotalFrames, dwLength
            data[data.index(box) + offset : data.index(box) + offset + 4] = (1).to_bytes(4, "little")
        path.write_bytes(data)
    held = []
    real = source.read_small
    monkeypatch.setattr(source, "read_small", lambda *args: held.append(real(*args)) or held[-1])
    clip = decode_video(path, FrameOptions(num_frames=4))
    assert held == [None]
    assert clip.indices.tolist() == [0, 20, 39, 59]
    assert frame_numbers(clip.frames) == [i % 16 for i in clip.indices]


def test_frames_larger_than_the_header_tells_are_not_kept_either(tmp_path):
    """The size changes within a bare stream, whose header tells the first."""
    small = write_video(tmp_path / "a.h264", numbered_frames(2, 64, 96)).read_bytes()
    large = write_video(tmp_path / "b.h264", numbered_frames(8, 480, 640)).read_bytes()
    path = tmp_path / "c.h264"
    path.write_bytes(small + large)
    clip = decode_video(path, FrameOptions(num_frames=10))
    assert clip.frames.shape[0] == 10


def test_images_open_by_their_bytes_in_a_list_of_formats(tmp_path):
    """PostScript would be handed to Ghostscript."""
    path = tmp_path / "a.png"
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path, format="EPS")
    with pytest.raises(VideoError, match="is no readable image"):
        decode_image(path)
