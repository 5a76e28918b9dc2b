"""Keep freed host memory in the process, so that the next step of a program on CPU finds it again."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8  # malloc.h of glibc


def keep_freed_memory() -> bool:
    """Tell glibc's malloc to serve large blocks from one heap and never to give that heap back; returns success.

    XLA's CPU back end allocates the temporaries of a program at every call and frees them after it. By default
    glibc maps such blocks anew each time, and the kernel zeroes every page again: a third of the time of a training
    step. A page fault then happens once per page of the largest step. Without effect on other C libraries.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    settings = ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_TOP_PAD, 64 * 2**20))
    return mallopt is not None and all(mallopt(name, value) == 1 for name, value in settings)


def keep_freed_memory_on_cpu() -> None:
    """`keep_freed_memory` where XLA computes on the host; elsewhere its temporaries are the device's."""
    import jax  # here, for the other function also serves processes without it

    if jax.default_backend() == "cpu":
        keep_freed_memory()
