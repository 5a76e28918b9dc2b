"""SIGTERM ends a command with exit code 143 within seconds, wherever the main thread is.

An exception raised by a handler of Python alone does not: it is lost where the interpreter was in a callback of the
garbage collector, a finaliser or a C library, and waits as long as compiled code runs. So a thread learns of the
signal, too: it has the handler called again where its exception was lost, and ends the process where nothing else did.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

EXIT_CODE = 128 + signal.SIGTERM  # 143, what a shell reports for a process that SIGTERM ended
GRACE_S = 10.0  # for what has to be closed
_PERIOD_S = 0.1


class Terminated(SystemExit):
    """Raised in the main thread by SIGTERM."""

    def __init__(self):
        super().__init__(EXIT_CODE)


class _Signals:
    """What the handler, the hook for lost exceptions and the thread tell each other."""

    def __init__(self) -> None:
        self.received = False  # SIGTERM, while it was not held
        self.lost = False  # the exception
        self.held = 0  # contexts in which somebody else answers SIGTERM


_signals = _Signals()


def received() -> bool:
    """Whether the handler of `terminable` was called."""
    return _signals.received


@contextmanager
def terminable() -> Iterator[None]:
    """Context of a command: SIGTERM raises Terminated in it, and ends the process at the latest after `GRACE_S`.

    Without effect elsewhere than in the main thread, where Python calls no handler.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _signals.received = _signals.lost = False
    before, hook = signal.signal(signal.SIGTERM, _raise), sys.unraisablehook
    sys.unraisablehook = noting = lambda unraisable: _note_lost(unraisable, hook)
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    earlier = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reading,), name="jvlmm-sigterm", daemon=True).start()
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.set_wakeup_fd(earlier)
        if sys.unraisablehook is noting:
            sys.unraisablehook = hook
        os.close(writing)  # the thread reads the end


@contextmanager
def held(hold: bool = True) -> Iterator[None]:
    """Context in which the thread leaves it to others to answer SIGTERM; with `hold` false it does not, inside one."""
    before, _signals.held = _signals.held, int(hold)
    try:
        yield
    finally:
        _signals.held = before


def _raise(signum: int, frame: FrameType | None) -> None:
    _signals.received = True
    raise Terminated


def _note_lost(unraisable: Any, hook: Any) -> None:
    if issubclass(unraisable.exc_type, Terminated):
        _signals.lost = True
    else:
        hook(unraisable)


def _watch(reading: int) -> None:
    """Wait for the signal, then for the end of the process."""
    with os.fdopen(reading, "rb", buffering=0) as pipe:
        while signals := pipe.read(64):
            if signal.SIGTERM in signals:
                _see_to_the_end()


def _see_to_the_end() -> None:
    waited = 0.0
    while waited < GRACE_S:
        time.sleep(_PERIOD_S)
        waited = 0.0 if _signals.held else waited + _PERIOD_S
        if _signals.lost:
            _signals.lost = False
            os.kill(os.getpid(), signal.SIGTERM)
    os._exit(EXIT_CODE)


# The wake-up file is shared with a forked child, whose own SIGTERM must not be taken for this process's.
os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))
