"""A program that stands between JAX's client in one process and JAX's service in another, and hides its end.

JAX's client aborts its process with a stack trace in the moment the service's connection closes. Behind this relay
it sees silence instead, while `rendezvous` ends the process with a reason. It is a process of its own, for JAX may wait
for its service while it holds the interpreter's lock.

Usage: relay.py HOST PORT. It prints the port of 127.0.0.1 at which it listens, and ends with its standard input.
"""

import asyncio
import contextlib
import os
import signal
import sys

_CHUNK = 2**16


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy one direction until its source ends or its destination is gone."""
    with contextlib.suppress(OSError):
        while data := await reader.read(_CHUNK):
            writer.write(data)
            await writer.drain()


async def _relay(host: str, port: int) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            service_reader, service_writer = await asyncio.open_connection(host, port)
            answers = asyncio.create_task(_pass_on(service_reader, writer))
            await _pass_on(reader, service_writer)
            service_writer.close()
            await answers
        await asyncio.Event().wait()  # the connection to JAX's client never ends from this side

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)
    os._exit(0)  # asyncio would first wait for what is still open


if __name__ == "__main__":
    # It serves its process to the end of it, also where a signal is sent to all.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    asyncio.run(_relay(sys.argv[1], int(sys.argv[2])))
