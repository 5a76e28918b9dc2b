"""Runs the launchers among stand-ins for the programs they call, which record their arguments and answer by script."""

import os
import shlex
import signal
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
CONFIG = "configs/sft_qwen2_5_vl_7b.py"
PATIENCE = 120  # seconds, for a loaded machine

# `next NAME` prints the first line of the script NAME and drops it, except the last, which stays.
PREAMBLE = """#!/usr/bin/env bash
next() {
    head -n 1 "$SCRIPTS/$1"
    if (($(wc -l <"$SCRIPTS/$1") > 1)); then sed -i 1d "$SCRIPTS/$1"; fi
}
{ printf '%s ' "${0##*/}"; printf '%q ' "$@"; echo; } >>"$SCRIPTS/calls"
"""


class Programs:
    """Stand-ins in a folder that comes first on PATH."""

    def __init__(self, folder: Path):
        self.bin = folder / "bin"
        self.scripts = folder / "scripts"
        self.bin.mkdir()
        self.scripts.mkdir()
        (self.scripts / "calls").touch()
        self.environment = {
            **os.environ,
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "SCRIPTS": str(self.scripts),
            "HOME": str(folder),
        }

    def add(self, name: str, body: str) -> None:
        path = self.bin / name
        path.write_text(PREAMBLE + body)
        path.chmod(0o755)

    def script(self, name: str, *lines: object) -> None:
        """What `next NAME` answers, in order."""
        (self.scripts / name).write_text("".join(f"{line}\n" for line in lines))

    def calls(self) -> list[list[str]]:
        """What was called so far; a line still being written does not count yet."""
        lines = (self.scripts / "calls").read_text().splitlines(keepends=True)
        return [shlex.split(line) for line in lines if line.endswith("\n")]

    def run(self, *command: object) -> subprocess.CompletedProcess:
        return subprocess.run(
            [str(part) for part in command],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )

    def start(self, *command: object) -> subprocess.Popen:
        """In a process group of its own, as a terminal starts it; heeding what the tests were started to ignore."""

        def heed_signals() -> None:
            for number in (signal.SIGINT, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)

        return subprocess.Popen(
            [str(part) for part in command],
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=heed_signals,
        )


def assert_refused(done: subprocess.CompletedProcess, *words: str, status: int = 2) -> None:
    """One line on stderr that has every one of `words`, and nothing done."""
    assert done.returncode == status, done.stdout + done.stderr
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and ": error: " in done.stderr, done.stderr
    missing = [word for word in words if word not in done.stderr]
    assert not missing, done.stderr
