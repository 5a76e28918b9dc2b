"""Small messages between all processes, in rounds, beside the devices."""

import json
from typing import Any

from jvlmm.sharding.hosts import process_count, process_index, publish, wait_for, withdraw

_POLL_MS = 500


class Interrupted(Exception):
    """Raised by a round that was waiting when its exchange was interrupted."""


class Exchange:
    """Every process gives each round one JSON-ready value and receives those of all.

    It goes through the host's network, not the devices, so that a thread that prepares data may use it while the
    main thread runs collectives. One thread at a time calls `round`; any may interrupt it.
    """

    def __init__(self, name: str):
        """`name` is used once in a job."""
        self._name, self._generation, self._number, self._open = name, 0, 0, True

    def round(self, value: Any) -> list[Any]:
        """The values of all processes in their order. Raises Interrupted."""
        place = f"jvlmm/exchange/{self._name}/{self._generation}"
        me = process_index()
        publish(f"{place}/{self._number}/{me}", json.dumps(value))
        values = [
            value if process == me else self._receive(f"{place}/{self._number}/{process}")
            for process in range(process_count())
        ]
        if self._number:  # who has published this round has read the one before
            withdraw(f"{place}/{self._number - 1}/{me}")
        self._number += 1
        return values

    def _receive(self, key: str) -> Any:
        text = wait_for(key, lambda: self._open, _POLL_MS)
        if text is None:
            raise Interrupted
        return json.loads(text)

    def interrupt(self) -> None:
        """End a waiting round, and those to come, with Interrupted."""
        self._open = False

    def restart(self) -> None:
        """Begin anew, in all processes, while none is in a round."""
        self._generation, self._number, self._open = self._generation + 1, 0, True
