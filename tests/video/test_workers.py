import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from media_files import frame_numbers, numbered_frames, write_video
from PIL import Image

from jvlmm.errors import VideoError
from jvlmm.video.budget import PixelOptions
from jvlmm.video.decode import decode_video
from jvlmm.video.limits import Limits
from jvlmm.video.sampling import FrameOptions
from jvlmm.video.workers import Decoder

FOUR = FrameOptions(num_frames=4)


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("media") / "a.mp4", numbered_frames(16))


@pytest.fixture(scope="module")
def slow(tmp_path_factory):
    """A video of 120,000 frames without times, which can only be decoded from end to end."""
    path = write_video(tmp_path_factory.mktemp("media") / "a.h264", numbered_frames(6, 480, 640))
    path.write_bytes(path.read_bytes() * 20_000)
    return path


def runs(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "State:\tZ" not in status.read_text()


def test_workers_give_what_decoding_here_gives(video, tmp_path):
    expected = decode_video(video, FOUR, start=0.3)
    with Decoder(workers=1) as decoder:
        clip = decoder.video(video, FOUR, start=0.3)
        small = decoder.video(video, FOUR, pixels=PixelOptions(video_min_pixels=784, video_max_pixels=3136))
        Image.fromarray(expected.frames[0]).save(tmp_path / "a.png")
        image = decoder.image(tmp_path / "a.png")
    assert np.array_equal(clip.frames, expected.frames)
    assert clip.times.tolist() == expected.times.tolist()
    assert clip.indices.tolist() == expected.indices.tolist()
    assert (clip.duration, clip.fps) == (expected.duration, expected.fps)
    assert small.frames.shape == (4, 28, 56, 3)
    assert np.array_equal(image.frames[0], expected.frames[0])


def test_without_workers_decoding_runs_here(video):
    with Decoder(workers=0) as decoder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess, "Popen", None)
        assert decoder.video(video, FOUR).frames.shape == (4, 64, 96, 3)


def test_deadline_kills_the_worker_and_the_next_file_works(video, slow):
    with Decoder(workers=1, limits=Limits(deadline_s=2)) as decoder:
        decoder.video(video, FOUR)
        with pytest.raises(VideoError, match="not decoded within 2 s of processor time") as caught:
            decoder.video(slow, FOUR)
        assert str(caught.value).startswith(f"{slow}: ")
        assert frame_numbers(decoder.video(video, FOUR).frames) == [0, 5, 10, 15]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSEGV])
def test_a_crash_costs_one_file(video, slow, how):
    with Decoder(workers=1) as decoder:
        decoder.video(video, FOUR)
        (worker,) = decoder._workers
        timer = threading.Timer(0.2, os.kill, (worker.process.pid, how))
        timer.start()
        with pytest.raises(VideoError, match=f"crashes the decoder \\(signal {how.value}\\)"):
            decoder.video(slow, FOUR)
        timer.join()
        assert decoder.video(video, FOUR).frames.shape == (4, 64, 96, 3)
        os.kill(worker.process.pid, how)  # killed while it waits
        worker.process.wait()
        assert decoder.video(video, FOUR).frames.shape == (4, 64, 96, 3)


def test_errors_pass_through_and_keep_the_worker(video, tmp_path):
    with Decoder(workers=1) as decoder:
        decoder.video(video, FOUR)
        pid = decoder._workers[0].process.pid
        with pytest.raises(VideoError) as caught:
            decoder.video(tmp_path / "missing.mp4")
        assert str(caught.value) == f"{tmp_path}/missing.mp4: no such file; check the path"
        with pytest.raises(VideoError, match="4 frames are asked for, the limit is 2"):
            Decoder(0, Limits(max_frames=2)).video(video, FOUR)
        assert decoder._workers[0].process.pid == pid


def test_pipes_and_devices_do_not_block(video, tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    with Decoder(workers=1) as decoder:
        for path in (tmp_path / "pipe.mp4", "/dev/zero"):
            with pytest.raises(VideoError, match="is not a regular file"):
                decoder.video(path)


def test_threads_share_the_workers(video):
    with Decoder(workers=2) as decoder, ThreadPoolExecutor(8) as threads:
        counts = [2, 4, 6, 8] * 10
        clips = list(threads.map(lambda n: decoder.video(video, FrameOptions(num_frames=n)), counts))
    assert [len(clip.frames) for clip in clips] == counts
    assert all(frame_numbers(clip.frames) == clip.indices.tolist() for clip in clips)


def test_closing_leaves_no_process(video):
    with Decoder(workers=2) as decoder:
        decoder.video(video, FOUR)
        pids = {worker.process.pid for worker in decoder._workers if worker.process}
        assert pids
    assert not any(map(runs, pids))
    with pytest.raises(RuntimeError, match="closed"):
        decoder.video(video, FOUR)


def test_workers_end_with_the_process_that_started_them(video):
    program = (
        "import os, sys; from jvlmm.video.workers import Decoder; decoder = Decoder(1); "
        f"decoder.video({str(video)!r}); print(decoder._workers[0].process.pid, flush=True); os._exit(0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    worker = int(done.stdout)
    end = time.monotonic() + 10
    while runs(worker) and time.monotonic() < end:
        time.sleep(0.05)
    assert not runs(worker)


def test_decoding_imports_neither_jax_nor_torch():
    program = (
        "import sys, jvlmm.video.worker, jvlmm.video.inspect; "
        "print([m for m in ('jax', 'flax', 'torch', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_the_callers_main_module_is_not_imported_again(video, tmp_path):
    script = tmp_path / "unguarded.py"
    script.write_text(
        "print('main runs')\nfrom jvlmm.video.workers import Decoder\n"
        f"with Decoder(1) as decoder: print(decoder.video({str(video)!r}).frames.shape)\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stdout.splitlines() == ["main runs", "(4, 64, 96, 3)"], done.stderr


def test_workers_follow_the_usable_cores_unless_they_are_set(monkeypatch):
    for cores, workers in ((3, 3), (200, 16)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: set(range(cores)))
        with Decoder(workers=None) as decoder:
            assert decoder.workers == len(decoder._workers) == workers
    with Decoder(workers=20) as decoder:
        assert decoder.workers == 20


def test_the_deadline_counts_processor_time(video):
    """A process that is stopped for a while, as on a loaded host, answers all the same."""
    with Decoder(workers=1, limits=Limits(deadline_s=1.0)) as decoder:
        expected = decoder.video(video, FOUR)
        pid = decoder._workers[0].process.pid
        os.kill(pid, signal.SIGSTOP)
        timer = threading.Timer(2.0, os.kill, (pid, signal.SIGCONT))
        timer.start()
        clip = decoder.video(video, FOUR)
        timer.join()
        assert np.array_equal(clip.frames, expected.frames)
        assert decoder._workers[0].process.pid == pid


def test_the_clock_ends_reads_that_never_end(video):
    with Decoder(workers=1, limits=Limits(wall_deadline_s=1.0)) as decoder:
        decoder.video(video, FOUR)
        os.kill(decoder._workers[0].process.pid, signal.SIGSTOP)
        with pytest.raises(VideoError, match="not decoded within 1 s by the clock"):
            decoder.video(video, FOUR)
        assert decoder.video(video, FOUR).frames.shape == (4, 64, 96, 3)
