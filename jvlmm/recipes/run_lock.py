"""One run a directory: a lock of the file system, and a lease where that does not reach."""

import fcntl
import json
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

from jvlmm.errors import JvlmmError

_NAME = ".lock"
_BEAT_S = 5.0
_LEASE_S = 30.0  # a holder on another machine that has not written for so long is gone


class RunLock:
    """Context manager that holds a directory for this process, or raises JvlmmError naming who does.

    The file says who holds it, and is written anew every few seconds. A lock of the system ends with its process; it
    does not reach other machines on every network file system, and some know none at all: there a holder whose entry
    still changes is alive, and one whose entry has not changed for `_LEASE_S` is gone.
    """

    def __init__(self, folder: Path):
        self.path = folder / _NAME
        self._own = {"host": socket.gethostname(), "machine": _machine(), "process": os.getpid(), "begun": _begun()}
        self._stopped = threading.Event()

    def __enter__(self) -> "RunLock":
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            works = self._locked()
            holder = self._read()
            if holder and not (works and holder.get("machine") == self._own["machine"]) and self._is_alive(holder):
                raise self._taken(holder)
        except BaseException:
            os.close(self._file)
            raise
        self._write(0)
        self._thread = threading.Thread(target=self._beat, name="jvlmm-lock", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._stopped.set()
        self._thread.join()
        os.ftruncate(self._file, 0)
        os.close(self._file)

    def _locked(self) -> bool:
        """Whether the file system gave the lock; False where it has none to give."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise self._taken(self._read()) from None
        except OSError:
            return False
        return True

    def _is_alive(self, holder: dict[str, Any]) -> bool:
        if holder.get("machine") == self._own["machine"]:
            return _begun(holder.get("process", 0)) == holder.get("begun")
        deadline = time.monotonic() + _LEASE_S
        while time.monotonic() < deadline:
            time.sleep(min(1.0, _BEAT_S / 5))
            now = self._read()
            if now != holder:
                return bool(now)  # nothing where it has ended meanwhile
        return False

    def _taken(self, holder: dict[str, Any]) -> JvlmmError:
        who = f"process {holder['process']} on {holder['host']}" if {"process", "host"} <= holder.keys() else "another"
        return JvlmmError(
            f"{self.path.parent}: another run is at work there ({who}); wait for its end, end it, or choose another "
            "--workdir"
        )

    def _read(self) -> dict[str, Any]:
        """What the holder says of itself; {} where there is none."""
        try:
            found = json.loads(os.pread(self._file, 4096, 0))
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    def _write(self, beat: int) -> None:
        text = json.dumps({**self._own, "beat": beat}).encode()
        os.pwrite(self._file, text, 0)
        os.ftruncate(self._file, len(text))

    def _beat(self) -> None:
        beat = 0
        while not self._stopped.wait(_BEAT_S):
            beat += 1
            try:
                self._write(beat)
            except OSError:  # a full disk: others then take the lease for ended, and the lock holds
                continue


def _machine() -> str:
    """What tells this machine, as it runs since its start, from others; containers on it share it, and its locks."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


def _begun(process: int | None = None) -> str | None:
    """When a process began, in the kernel's units, so that a later one of its number is not taken for it."""
    try:
        return Path(f"/proc/{process or os.getpid()}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None
