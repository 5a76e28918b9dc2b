"""Several processes as one job: how they find each other, agree, and end together.

The only file that knows what JAX does not export: its clusters, the client of its key-value store, how it cleans up.
"""

import atexit
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
from jax._src import distributed
from jax._src.api import clean_up
from jax._src.clusters import ClusterEnv
from jax.errors import JaxRuntimeError

import jvlmm
from jvlmm.errors import ConfigError, JvlmmError
from jvlmm.sharding import relay
from jvlmm.sharding.rendezvous import AGAIN, GRACE_S, SILENCE_S, VARIABLES, Cluster, Failure, Rendezvous, address

_START_S, _SCHEDULED_S = 80.0, 600.0  # until all have met, where a user starts them and where a scheduler does
_HEARTBEAT_S = 120  # of JAX's own service, which ends the job where `Rendezvous` cannot
_SHUTDOWN_S = 60
_FOREVER_MS = 7 * 24 * 3600 * 1000  # a process that waits is ended by `Rendezvous` when another one fails
_POLL_MS = 10_000
_VERDICT_S = 2.0  # in which the death of a process is known to all
_COLLECTIVES = ("Gloo", "NCCL")  # libraries whose errors tell of a lost connection

_rendezvous: Rendezvous | None = None  # of this process, where it is not alone


class AgreedExit(SystemExit):
    """An end that all processes reach at the same step: none has to tell the others."""


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

    Processes are named by `VARIABLES`, or by a cluster JAX knows. They wait for each other for JVLMM_START_TIMEOUT_S
    seconds; where it is unset for 80, in a cluster for 600. Raises ConfigError naming who is missing, or the variable
    to mend.
    """
    global _rendezvous
    cluster, devices = explicit_cluster(environ), None
    start_s = _start_s(environ, _SCHEDULED_S if cluster is None else _START_S)
    if cluster is None and (method := detected_cluster(environ)):
        try:
            coordinator, count, index, devices = ClusterEnv.auto_detect_unset_distributed_params(
                None, None, None, None, method, int(start_s)
            )
        except (ValueError, KeyError, TypeError, RuntimeError, OSError, ImportError) as error:
            raise _cannot_join(error) from error
        cluster = Cluster(coordinator, count, index, found_by=method)
    if cluster is None or cluster.count == 1:
        return

    # The processes meet before JAX starts, whose own service aborts, hangs or crashes where they do not fit together.
    versions = f"jvlmm {jvlmm.__version__} with jax {jax.__version__}"
    rendezvous = Rendezvous(cluster, versions, end=lambda failure: _end(failure, cluster.count))
    atexit.register(rendezvous.leave)
    port = rendezvous.join(start_s)
    _rendezvous = rendezvous  # from now on this process's end is told to the others

    handler = signal.getsignal(signal.SIGTERM)
    host, _ = address(cluster.coordinator)
    service = f"127.0.0.1:{port if cluster.index == 0 else _start_relay(host, port)}"
    atexit.register(clean_up)  # before the relay and this process's part in the rendezvous end
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            coordinator_address=service,
            num_processes=cluster.count,
            process_id=cluster.index,
            local_device_ids=devices,
            cluster_detection_method="deactivate",
            initialization_timeout=int(start_s),
            heartbeat_timeout_seconds=_HEARTBEAT_S,
            shutdown_timeout_seconds=_SHUTDOWN_S,
            coordinator_bind_address=f"[::]:{port}",
        )
        jax.devices()  # each process waits for the devices of the others: none may wait for something else first
    except (ValueError, KeyError, TypeError, RuntimeError, OSError, ImportError) as error:
        raise _cannot_join(error) from error
    signal.signal(signal.SIGTERM, handler or signal.SIG_DFL)  # JAX's would swallow it; see training.preemption


def _start_s(environ: Mapping[str, str], unset: float) -> float:
    text = environ.get("JVLMM_START_TIMEOUT_S", "").strip() or str(unset)
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 1 <= seconds <= 24 * 3600:
        raise ConfigError(f"JVLMM_START_TIMEOUT_S={text!r} is no number of seconds: give 1 to 86400, or unset it")
    return seconds


def _cannot_join(error: Exception) -> ConfigError:
    reason = " ".join(str(error).split())[:300]
    return ConfigError(
        f"cannot join the other processes ({type(error).__name__}: {reason}); "
        f"start all of them at about the same time, or name them with {', '.join(VARIABLES)}"
    )


def _start_relay(host: str, port: int) -> int:
    """The port of this host behind which JAX's service at `host` and `port` is reached while this process lives."""
    # Without the site's packages it starts in a moment.
    command = [sys.executable, "-I", "-S", str(Path(relay.__file__)), host, str(port)]
    program = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
    atexit.register(program.wait)
    atexit.register(program.stdin.close)  # which ends it
    return int(program.stdout.readline())


@contextmanager
def joined(environ: Mapping[str, str]) -> Iterator[None]:
    """Context of a command that runs in all processes: whatever ends it in one of them ends it in all."""
    try:
        start_processes(environ)
        yield
    except AgreedExit:
        raise
    except BaseException as error:
        if _rendezvous:
            _await_verdict(error)
            failure = Failure(_rendezvous.process, _status(error), _reason(error))
            _rendezvous.announce(failure)
            atexit.register(_leave, failure.status)
        raise


def _await_verdict(error: BaseException) -> None:
    """Wait as long as it may take to learn that `error` is only what another process's end did to this one.

    That end is told by the thread of `Rendezvous`, which then ends this process.
    """
    if isinstance(error, JaxRuntimeError) and any(library in str(error) for library in _COLLECTIVES):
        time.sleep(SILENCE_S + GRACE_S)  # a lost host breaks a collective before its silence is noticed
    elif isinstance(error, Exception):
        time.sleep(_VERDICT_S)


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
    _rendezvous.wait_for_others()  # they read from process 0 why it ends
    os._exit(status)


def _end(failure: Failure, count: int) -> None:
    """End this process as another one ended."""
    line = f"process {failure.process} of {count} ended the job: {failure.reason}"
    print(f"jvlmm: error: {line}", file=sys.stderr, flush=True)
    os._exit(failure.status)
