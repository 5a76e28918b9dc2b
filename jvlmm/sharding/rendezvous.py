"""The line on which the processes of a job find each other, and learn when one of them fails or falls silent.

Process 0 listens at the job's address. The others connect, say who they are, and stay connected: a process that is
killed closes its connection, one that is stopped no longer speaks, one that fails says why. JAX's own service finds
some of this too, but ends a process with a stack trace and without a reason, so it is asked last.
"""

import asyncio
import contextlib
import errno
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from dataclasses import astuple, dataclass
from typing import Any

from jvlmm.errors import ConfigError

VARIABLES = ("JVLMM_COORDINATOR", "JVLMM_NUM_PROCESSES", "JVLMM_PROCESS_ID")
AGAIN = "run the same command again, it resumes from the last checkpoint"
GRACE_S = 5.0  # process 0 stays so long after a failure, for the others learn of it from there
BEAT_S = 1.0
SILENCE_S = 30.0
_RETRY_S = 0.5
_PATIENCE_S = 10.0  # before a process says for whom it waits
_LONGEST_MESSAGE = 2**16
_NO_JOB = "what listens there does not answer as process 0 of a job of jvlmm"


@dataclass(frozen=True)
class Cluster:
    """The processes of this job, and which of them this one is."""

    coordinator: str  # HOST:PORT of process 0
    count: int
    index: int
    found_by: str | None = None  # JAX's name for the cluster that says so, None where the environment's variables do

    @property
    def place(self) -> str:
        """Where process 0 is, as its user knows it."""
        found, named = f"{self.coordinator} (found by {self.found_by})", f"{VARIABLES[0]}={self.coordinator}"
        return found if self.found_by else named


@dataclass(frozen=True)
class Failure:
    """Which process ended the job, its exit status, and why, with a remedy."""

    process: int
    status: int
    reason: str


class Rendezvous:
    """Where this process meets the others. A thread speaks for it until `leave`.

    `end` is called in that thread with another process's failure, once all have met; it ends this process. Before,
    `join` raises what keeps the processes from meeting.
    """

    def __init__(self, cluster: Cluster, versions: str, end: Callable[[Failure], None]):
        """`versions` is told to the others: a job has one."""
        self.process = cluster.index
        self._cluster, self._end = cluster, end
        self._hello = {"process": cluster.index, "count": cluster.count, "versions": versions}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="jvlmm-rendezvous", daemon=True)
        self._here: _First | _Other | None = None

    def join(self, start_s: float) -> int:
        """Return once all processes have met: the port at process 0's host at which JAX's service may listen.

        Raises ConfigError with who is missing or contradicts whom, at the latest after about `start_s` seconds.
        """
        self._thread.start()
        place = _First if self._cluster.index == 0 else _Other
        self._here = place(self._cluster, self._hello, self._end)
        return self._run(self._here.join(start_s))

    def announce(self, failure: Failure) -> None:
        """Tell the other processes that this one fails, as far as they can still be told."""
        with contextlib.suppress(OSError, TimeoutError):
            self._run(self._here.announce(failure), timeout=GRACE_S)

    def wait_for_others(self) -> None:
        """Return once the others have gone, or have had the time for it; they need no process but the first."""
        with contextlib.suppress(OSError, TimeoutError):
            self._run(self._here.wait_for_others(), timeout=GRACE_S)

    def leave(self) -> None:
        """Part in peace, and end the thread. Without effect where the processes never met."""
        if self._thread.is_alive():
            with contextlib.suppress(OSError, TimeoutError):
                self._run(self._leave(), timeout=GRACE_S)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(GRACE_S)

    async def _leave(self) -> None:
        await self._here.leave()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _run(self, work: Coroutine, timeout: float | None = None) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout)


class _First:
    """Process 0: keeps the list of those present, and tells everyone what one of them says."""

    def __init__(self, cluster: Cluster, hello: dict[str, Any], end: Callable[[Failure], None]):
        self._cluster, self._hello, self._end = cluster, hello, end
        self._present: dict[int, asyncio.StreamWriter] = {}
        self._heard: dict[int, float] = {}
        self._ended = False
        self._server: asyncio.Server | None = None
        self._met: asyncio.Future[int] | None = None
        self._tasks: list[asyncio.Task] = []  # asyncio itself keeps none

    async def join(self, start_s: float) -> int:
        self._met = asyncio.get_running_loop().create_future()
        listening = await _listen(self._cluster, self._hello)
        self._server = await asyncio.start_server(self._receive, sock=listening, limit=_LONGEST_MESSAGE)
        self._tasks.append(asyncio.create_task(self._beat()))
        self._tasks.append(asyncio.create_task(self._await_missing(start_s)))
        self._look_whether_all_are_here()
        return await self._met

    async def announce(self, failure: Failure) -> None:
        self._ended = True
        await self._tell({"failure": astuple(failure)})

    async def wait_for_others(self) -> None:
        while self._present:
            await asyncio.sleep(0.05)

    async def leave(self) -> None:
        self._ended = True
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.wait_for_others(), GRACE_S / 2)
        await self._tell({"leave": True})
        if self._server:
            self._server.close()

    def _look_whether_all_are_here(self) -> None:
        if len(self._present) == self._cluster.count - 1 and not self._met.done():
            port = _port_for_the_service(address(self._cluster.coordinator)[1])
            self._tasks.append(asyncio.create_task(self._tell({"begin": port})))
            self._met.set_result(port)

    async def _await_missing(self, start_s: float) -> None:
        patience = min(_PATIENCE_S, start_s / 2)
        await asyncio.sleep(patience)
        if not self._met.done():
            print(f"waiting for {self._absent()}", file=sys.stderr, flush=True)
        await asyncio.sleep(start_s - patience)
        if not self._met.done():
            await self._refuse_all(
                f"{self._absent()} did not come within {start_s:.0f} s: look there for the reason, and start all "
                "processes at about the same time (JVLMM_START_TIMEOUT_S is how long they wait for each other)"
            )

    def _absent(self) -> str:
        absent = [str(number) for number in range(1, self._cluster.count) if number not in self._present]
        more = f" and {len(absent) - 8} more" if len(absent) > 8 else ""
        return f"process{'es' * (len(absent) > 1)} {', '.join(absent[:8])}{more} of {self._cluster.count}"

    async def _receive(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection from its first word to its end."""
        hello = await _read(reader, SILENCE_S)
        if not hello or "process" not in hello:  # a stranger, such as somebody who looks for open ports
            writer.close()
            return
        if objection := self._objection(hello):
            if not self._met.done():
                await self._refuse_all(objection)
            with contextlib.suppress(OSError):
                await _write(writer, {"refused": objection})
            writer.close()
            return

        # One that is gone before it is told so is found by reading, as all others.
        process = hello["process"]
        self._present[process], self._heard[process] = writer, time.monotonic()
        with contextlib.suppress(OSError):
            await _write(writer, {"accepted": True})
        self._look_whether_all_are_here()
        while (message := await _read(reader)) and "leave" not in message:
            self._heard[process] = time.monotonic()
            if "failure" in message:
                self._fail(Failure(*message["failure"]))
        del self._present[process]
        writer.close()
        if not message:
            self._fail(_gone(process))

    def _objection(self, hello: dict[str, Any]) -> str | None:
        """Why that process cannot belong to this job; None if it does."""
        process, count, versions = (hello.get(name) for name in ("process", "count", "versions"))
        if self._met.done():
            if self._met.exception():  # one who comes late to what could not begin
                return str(self._met.exception())
            return (
                f"the {self._cluster.count} processes at {self._cluster.place} have begun "
                "without this process: wait for its end, or choose another port"
            )
        if count != self._cluster.count:
            return (
                f"process 0 is told of {self._cluster.count} processes and process {process} of {count}: "
                f"give all of them the same number ({VARIABLES[1]})"
            )
        if process == 0 or process in self._present:
            return (
                f"two processes have the number {process} ({VARIABLES[2]}): "
                f"number them from 0 to {self._cluster.count - 1}, each number once"
            )
        if versions != self._hello["versions"]:
            return f"process 0 runs {self._hello['versions']} and process {process} {versions}: install the same in all"
        return None

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(BEAT_S)
            await self._tell({"beat": True})
            for process in list(self._present):
                silence = time.monotonic() - self._heard[process]
                if silence > SILENCE_S:
                    self._fail(_silent(process, silence))

    async def _tell(self, message: dict[str, Any]) -> None:
        for writer in list(self._present.values()):
            with contextlib.suppress(OSError, TimeoutError):
                await asyncio.wait_for(_write(writer, message), BEAT_S)

    async def _refuse_all(self, reason: str) -> None:
        await self._tell({"refused": reason})
        if not self._met.done():
            self._met.set_exception(ConfigError(reason))

    def _fail(self, failure: Failure) -> None:
        if not self._ended:
            self._ended = True
            self._tasks.append(asyncio.create_task(self._end_all(failure)))

    async def _end_all(self, failure: Failure) -> None:
        if not self._met.done():
            await self._refuse_all(f"process {failure.process} of {self._cluster.count}: {failure.reason}")
            return
        await self._tell({"failure": astuple(failure)})
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.wait_for_others(), GRACE_S)
        self._end(failure)


class _Other:
    """Any process but the first: hears from process 0 what the others say."""

    def __init__(self, cluster: Cluster, hello: dict[str, Any], end: Callable[[Failure], None]):
        self._cluster, self._hello, self._end = cluster, hello, end
        self._ended = False
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._tasks: list[asyncio.Task] = []

    async def join(self, start_s: float) -> int:
        self._reader, self._writer = await self._connect(start_s)
        while True:
            message = await _read(self._reader, SILENCE_S)
            if message is None:
                raise ConfigError(
                    f"process 0 at {self._cluster.place} ended, or was stopped, before all "
                    "processes had met: look there for the reason, and start all of them again"
                )
            if "refused" in message:
                raise ConfigError(message["refused"])
            if "begin" in message:
                self._tasks += [asyncio.create_task(self._beat()), asyncio.create_task(self._listen())]
                return message["begin"]
            with contextlib.suppress(OSError):
                await _write(self._writer, {"beat": True})

    async def _connect(self, start_s: float) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """The connection to process 0, which has accepted this process."""
        host, port = address(self._cluster.coordinator)
        deadline, warn = time.monotonic() + start_s, time.monotonic() + _PATIENCE_S
        while True:
            try:
                async with asyncio.timeout(max(BEAT_S, deadline - time.monotonic())):
                    reader, writer = await asyncio.open_connection(host, port, limit=_LONGEST_MESSAGE)
                    await _write(writer, self._hello)
                    # A program that is no process 0 may be silent for ever.
                    answer = await _read(reader, min(SILENCE_S / 2, start_s))
                if answer and "accepted" in answer:
                    return reader, writer
                if answer and "refused" in answer:
                    raise ConfigError(answer["refused"])
                writer.close()
                reason = _NO_JOB
            except (OSError, TimeoutError) as error:
                reason = str(error) or "no answer"
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"{self._cluster.place}: no process 0 there within {start_s:.0f} s "
                    f"({reason}); start it there, look there why it ended, or correct the address"
                )
            if time.monotonic() > warn:
                print(f"waiting for process 0 at {self._cluster.coordinator} ({reason})", file=sys.stderr, flush=True)
                warn += start_s
            await asyncio.sleep(_RETRY_S)

    async def announce(self, failure: Failure) -> None:
        self._ended = True
        await _write(self._writer, {"failure": astuple(failure)})

    async def wait_for_others(self) -> None:
        """They need nothing of this process."""

    async def leave(self) -> None:
        self._ended = True
        if self._writer:
            await _write(self._writer, {"leave": True})
            self._writer.close()

    async def _beat(self) -> None:
        while True:
            with contextlib.suppress(OSError):
                await _write(self._writer, {"beat": True})
            await asyncio.sleep(BEAT_S)

    async def _listen(self) -> None:
        while True:
            began = time.monotonic()
            message = await _read(self._reader, SILENCE_S)
            if self._ended or (message and "leave" in message):
                return
            if message and "failure" in message:
                self._end(Failure(*message["failure"]))
                return
            if message is None:
                silence = time.monotonic() - began
                self._end(_silent(0, silence) if silence >= SILENCE_S else _gone(0))
                return


def _gone(process: int) -> Failure:
    reason = f"it is gone without a word (killed, out of memory, or its host is lost); look there, then {AGAIN}"
    return Failure(process, 1, reason)


def _silent(process: int, silence: float) -> Failure:
    return Failure(process, 1, f"no sign of life for {silence:.0f} s (stopped, or not to be reached); {AGAIN}")


def address(coordinator: str) -> tuple[str, int]:
    """Host and port of a coordinator, `[::1]:80` as well."""
    host, _, port = coordinator.rpartition(":")
    return host.strip("[]"), int(port)


def _bound(port: int) -> socket.socket:
    """A socket that listens at all addresses of this host."""
    if socket.has_dualstack_ipv6():
        with contextlib.suppress(OSError):
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024)
    return socket.create_server(("", port), backlog=1024)


async def _listen(cluster: Cluster, hello: dict[str, Any]) -> socket.socket:
    """The socket of process 0. Raises ConfigError with who holds its port instead."""
    _, port = address(cluster.coordinator)
    try:
        return _bound(port)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        if error.errno == errno.EADDRINUSE:
            # Another process 0 of this job says so itself.
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(5 * BEAT_S):
                    reader, writer = await asyncio.open_connection("localhost", port, limit=_LONGEST_MESSAGE)
                    await _write(writer, hello)
                    answer = await _read(reader, 4 * BEAT_S)
                    if answer and "refused" in answer:
                        raise ConfigError(answer["refused"]) from None
        raise ConfigError(
            f"{cluster.place}: port {port} cannot be used here ({reason}); give all processes "
            "another port that is free on this host, or end the program that holds it"
        ) from None


def _port_for_the_service(port: int) -> int:
    """The port after that one where it is free, else any that is."""
    for candidate in (port + 1, 0):
        with contextlib.suppress(OSError, OverflowError), _bound(candidate) as probe:
            return probe.getsockname()[1]
    raise ConfigError("no port is free on this host")


async def _read(reader: asyncio.StreamReader, timeout: float | None = None) -> dict[str, Any] | None:
    """The next message; None at the end of the connection, after `timeout` seconds, and for what is no message."""
    try:
        async with asyncio.timeout(timeout):
            message = json.loads(await reader.readline())
    except (OSError, ValueError, TimeoutError):
        return None
    return message if isinstance(message, dict) else None


async def _write(writer: asyncio.StreamWriter, message: dict[str, Any]) -> None:
    writer.write(json.dumps(message).encode() + b"\n")
    await writer.drain()
