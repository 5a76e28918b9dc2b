"""Recently used patches in host memory, bounded in bytes."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable

from jvlmm.video.clip import Patches


class PatchCache:
    """Least recently used patches are dropped first. Safe to share between threads; 0 bytes keeps nothing."""

    def __init__(self, max_bytes: int):
        self._max_bytes = max_bytes
        self._entries: OrderedDict[Hashable, Patches] = OrderedDict()
        self._lock = threading.Lock()
        self.bytes = 0
        self.hits = 0
        self.misses = 0

    def get(self, key: Hashable, make: Callable[[], Patches]) -> Patches:
        """The patches stored under `key`, made where there are none. Errors of `make` pass through, uncached."""
        with self._lock:
            if key in self._entries:
                self.hits += 1
                self._entries.move_to_end(key)
                return self._entries[key]
            self.misses += 1
        patches = make()  # outside the lock: two threads may decode one file twice, none waits for another's
        size = patches.pixels.nbytes
        with self._lock:
            if key not in self._entries and size <= self._max_bytes:
                self._entries[key] = patches
                self.bytes += size
                while self.bytes > self._max_bytes:
                    self.bytes -= self._entries.popitem(last=False)[1].pixels.nbytes
        return patches
