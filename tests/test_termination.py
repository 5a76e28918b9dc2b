"""SIGTERM ends a command with 143 within seconds, also where the exception of its handler is lost."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import jvlmm
from jvlmm.cli import main as command

PLACES = {
    "waiting": "time.sleep(60)",
    "in a callback of the garbage collector": """
def callback(phase, info):
    time.sleep(0.3)
gc.callbacks.append(callback)
while True:
    gc.collect()
""",
    "where a library makes another error of it": """
try:
    time.sleep(60)
except BaseException as error:
    raise RuntimeError("from compiled code") from error
""",
    "in compiled code that waits on": "while True: ctypes.CDLL(None).usleep(20_000_000)",
}
PROGRAM = """
import ctypes, gc, sys, time
from jvlmm import termination
from jvlmm.cli import main as command
termination.GRACE_S = 1.0
def verb(argv):
    print("begun", flush=True)
    exec(argv[0], {"ctypes": ctypes, "gc": gc, "time": time})
    return 0
command.run_verb = verb
sys.exit(command.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("place", PLACES)
def test_sigterm_ends_a_command_with_143(place):
    environment = {**os.environ, "PYTHONPATH": str(Path(jvlmm.__file__).parents[1])}
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, PLACES[place]], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"begun\n"
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 143


def test_without_a_home_nothing_is_kept_between_commands(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert command.cache_directory() == tmp_path / "jvlmm/compilations"
    monkeypatch.delenv("XDG_CACHE_HOME")

    def nobody():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(command.Path, "home", nobody)
    assert command.cache_directory() is None
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert command.cache_directory() is None
