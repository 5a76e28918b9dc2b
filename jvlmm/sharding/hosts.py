"""Several processes as one job: how they find each other, agree, and end together.

The only file that knows what JAX does not export: its table of clusters and the client of its key-value store.
"""

import atexit
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax
from jax._src import distributed
from jax._src.clusters import ClusterEnv
from jax.errors import JaxRuntimeError

from jvlmm.errors import ConfigError, JvlmmError
from jvlmm.sharding.watch import AGAIN, GRACE_S, Failure, Watch, announce, await_verdict

VARIABLES = ("JVLMM_COORDINATOR", "JVLMM_NUM_PROCESSES", "JVLMM_PROCESS_ID")
_HEARTBEAT_S = 50  # of JAX's own service, which ends the job where `Watch` cannot
_SHUTDOWN_S = 60
_START_S = 300
_FOREVER_MS = 7 * 24 * 3600 * 1000  # a process that waits is ended by `Watch` when another one fails
_POLL_MS = 10_000
_COLLECTIVES = ("Gloo", "NCCL")  # libraries whose errors tell of a lost connection


class AgreedExit(SystemExit):
    """An end that all processes reach at the same step: none has to tell the others."""


@dataclass(frozen=True)
class Cluster:
    """What the environment says about the processes of this job."""

    coordinator: str  # HOST:PORT of process 0
    count: int
    index: int


def explicit_cluster(environ: Mapping[str, str]) -> Cluster | None:
    """The processes named by `VARIABLES`; None where none of the three is set.

    Raises ConfigError where they are incomplete or contradict each other.
    """
    given = {name: environ[name].strip() for name in VARIABLES if environ.get(name, "").strip()}
    if not given:
        return None
    for name in VARIABLES:
        if name not in given:
            raise ConfigError(
                f"{name} is not set, but {' and '.join(given)} {'is' if len(given) == 1 else 'are'}: "
                f"set all of {', '.join(VARIABLES)}, or none of them for a single process"
            )
    coordinator, count, index = (given[name] for name in VARIABLES)
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ConfigError(
            f"JVLMM_COORDINATOR={coordinator!r} is no address: give HOST:PORT, the host of process 0 and a free port "
            "there, the same in every process"
        )
    if not count.isdecimal() or int(count) < 1:
        raise ConfigError(f"JVLMM_NUM_PROCESSES={count!r} is no number of processes: give 1 or more")
    if not index.isdecimal() or int(index) >= int(count):
        raise ConfigError(
            f"JVLMM_PROCESS_ID={index!r} does not fit JVLMM_NUM_PROCESSES={count}: "
            f"number the processes from 0 to {int(count) - 1}"
        )
    return Cluster(coordinator, int(count), int(index))


def detected_cluster(environ: Mapping[str, str]) -> str | None:
    """JAX's name for the cluster that started this process with others: Open MPI, SLURM, TPU VMs, GKE; else None."""
    platforms = environ.get("JAX_PLATFORMS", "")
    for cluster in ClusterEnv._cluster_types:
        without_tpu = cluster.name.endswith("tpu") and platforms and "tpu" not in platforms
        no_indexed_job = cluster.name == "k8s" and "JOB_COMPLETION_INDEX" not in environ
        if not (cluster.opt_in_only_method or without_tpu or no_indexed_job) and cluster.is_env_present():
            return cluster.name if cluster.get_process_count() > 1 else None
    return None


def start_processes(environ: Mapping[str, str]) -> None:
    """Join the other processes of this job and their devices, if the environment names any; the first use of JAX.

    Processes are named by `VARIABLES`, or by a cluster JAX knows. Raises ConfigError naming the variable to mend.
    """
    cluster = explicit_cluster(environ)
    handler = signal.getsignal(signal.SIGTERM)
    watches: list[Watch] = []
    atexit.register(lambda: [watch.stop() for watch in watches])  # first, so that it is called after JAX's own end
    try:
        where = {"cluster_detection_method": detected_cluster(environ)} if cluster is None else _arguments(cluster)
        if where["cluster_detection_method"] is None or where.get("num_processes") == 1:
            return
        if cluster and cluster.index > 0:
            _wait_for_coordinator(cluster.coordinator)
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(
            **where,
            initialization_timeout=_START_S,
            heartbeat_timeout_seconds=_HEARTBEAT_S,
            shutdown_timeout_seconds=_SHUTDOWN_S,
        )
        jax.devices()  # each process waits for the devices of the others: none may wait for something else first
    except (ValueError, KeyError, TypeError, RuntimeError, OSError, ImportError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"cannot join the other processes ({type(error).__name__}: {reason}); "
            f"start all of them at about the same time, or name them with {', '.join(VARIABLES)}"
        ) from error
    signal.signal(signal.SIGTERM, handler or signal.SIG_DFL)  # JAX's would swallow it; see training.preemption
    watches.append(Watch(_client(), process_index(), process_count()))
    watches[0].start()


def _arguments(cluster: Cluster) -> dict[str, Any]:
    return {
        "coordinator_address": cluster.coordinator,
        "num_processes": cluster.count,
        "process_id": cluster.index,
        "cluster_detection_method": "deactivate",
    }


def _wait_for_coordinator(address: str) -> None:
    """Return once process 0 listens; JAX's own wait would end in a stack trace."""
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + _START_S
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"JVLMM_COORDINATOR={address}: no process 0 there within {_START_S} s ({error}); start it there, "
                    "or correct the address"
                ) from None
        time.sleep(0.5)


@contextmanager
def joined(environ: Mapping[str, str]) -> Iterator[None]:
    """Context of a command that runs in all processes: whatever ends it in one of them ends it in all."""
    start_processes(environ)
    try:
        yield
    except AgreedExit:
        raise
    except BaseException as error:
        if process_count() > 1:
            if isinstance(error, JaxRuntimeError) and any(library in str(error) for library in _COLLECTIVES):
                await_verdict()  # a lost process breaks a collective before its silence is noticed
            failure = Failure(process_index(), _status(error), _reason(error))
            announce(_client(), failure)
            atexit.register(_leave, failure.status)
        raise


def process_index() -> int:
    """Number of this process; 0 where it is alone. Touches no device."""
    return distributed.global_state.process_id


def process_count() -> int:
    """Number of processes. Touches no device."""
    return distributed.global_state.num_processes


def from_first(name: str, work: Callable[[], Any]) -> Any:
    """JSON-ready result of `work()` in process 0, for all; `name` is used once in a job. The others wait."""
    if process_count() == 1:
        return work()
    key = f"jvlmm/from_first/{name}"
    if process_index() == 0:
        result = work()
        _client().key_value_set(key, json.dumps(result))
        return result
    return json.loads(wait_for(key, lambda: True))


def wait_for_all(name: str) -> None:
    """Return once every process has come here; `name` is used once in a job."""
    if process_count() > 1:
        _client().wait_at_barrier(f"jvlmm/{name}", _FOREVER_MS)


def publish(key: str, value: str) -> None:
    """Let the other processes read `value` under `key`."""
    _client().key_value_set(key, value)


def withdraw(key: str) -> None:
    """Drop what was published."""
    _client().key_value_delete(key)


def wait_for(key: str, wanted: Callable[[], bool], poll_ms: int = _POLL_MS) -> str | None:
    """What another process has published under `key`, once it has; None when it is no longer `wanted`."""
    while wanted():
        try:
            return _client().blocking_key_value_get(key, poll_ms)
        except JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
    return None


def _client() -> Any:
    return distributed.global_state.client


def _status(error: BaseException) -> int:
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    return 128 + signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1


def _reason(error: BaseException) -> str:
    if isinstance(error, SystemExit | KeyboardInterrupt):
        return f"it was told to end; {AGAIN}"
    text = " ".join(str(error).split())
    return text if isinstance(error, JvlmmError) else f"{type(error).__name__}: {text}"


def _leave(status: int) -> None:
    """End without the farewell of JAX's service, for which the others would have to be there."""
    sys.stdout.flush()
    sys.stderr.flush()
    if process_index() == 0:
        time.sleep(GRACE_S)  # the others read from this process why it ends
    os._exit(status)
