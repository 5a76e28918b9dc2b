"""How processes find each other, what they are told where they cannot, and how one ends the others."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import jvlmm
from jvlmm.errors import ConfigError
from jvlmm.sharding import hosts, watch
from jvlmm.sharding.hosts import Cluster, detected_cluster, explicit_cluster, from_first, joined, wait_for_all

COMPLETE = {"JVLMM_COORDINATOR": "host:1234", "JVLMM_NUM_PROCESSES": "4", "JVLMM_PROCESS_ID": "3"}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_named_processes():
    assert explicit_cluster({}) is None
    assert explicit_cluster(dict.fromkeys(COMPLETE, "")) is None
    assert explicit_cluster(COMPLETE) == Cluster("host:1234", 4, 3)
    assert explicit_cluster({**COMPLETE, "JVLMM_COORDINATOR": "[::1]:80"}).coordinator == "[::1]:80"


@pytest.mark.parametrize("missing", COMPLETE)
def test_an_incomplete_set_names_what_is_missing(missing):
    given = {name: value for name, value in COMPLETE.items() if name != missing}
    with pytest.raises(ConfigError, match=f"{missing} is not set.*are: set all of .* or none"):
        explicit_cluster(given)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("JVLMM_COORDINATOR", "host", "'host' is no address: give HOST:PORT"),
        ("JVLMM_COORDINATOR", "host:99999", "is no address"),
        ("JVLMM_NUM_PROCESSES", "0", "'0' is no number of processes"),
        ("JVLMM_NUM_PROCESSES", "many", "'many' is no number of processes"),
        ("JVLMM_PROCESS_ID", "4", "'4' does not fit JVLMM_NUM_PROCESSES=4: number the processes from 0 to 3"),
        ("JVLMM_PROCESS_ID", "-1", "'-1' does not fit"),
    ],
)
def test_a_contradiction_names_the_variable(name, value, said):
    with pytest.raises(ConfigError, match=f"{name}=.*{said}" if said[0] != "'" else f"{name}={said}"):
        explicit_cluster({**COMPLETE, name: value})


def test_clusters_known_to_jax(monkeypatch):
    step = {"JOB_ID": "7", "STEP_NODELIST": "node[1-2]", "NTASKS": "16", "PROCID": "9", "LOCALID": "1"}
    for name, value in step.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert detected_cluster(os.environ) == "slurm"
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert detected_cluster(os.environ) is None, "one task is no job of several processes"
    monkeypatch.delenv("SLURM_PROCID")
    assert detected_cluster(os.environ) is None


def test_a_coordinator_that_nobody_runs_is_named(monkeypatch):
    monkeypatch.setattr(hosts, "_START_S", 0)
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(ConfigError, match=f"JVLMM_COORDINATOR={address}: no process 0 there within 0 s .*refused"):
        hosts.start_processes({**COMPLETE, "JVLMM_COORDINATOR": address})


def test_a_single_process_stays_as_it_is():
    with joined({}):
        assert from_first("anything", lambda: 3) == 3
        wait_for_all("anything")
    with joined({**COMPLETE, "JVLMM_NUM_PROCESSES": "1", "JVLMM_PROCESS_ID": "0"}):
        assert from_first("anything", lambda: 4) == 4


class Service:
    """JAX's key-value store; the `beating` processes beat whenever anyone writes to it."""

    def __init__(self, beating=()):
        self.values, self._beating = {}, beating

    def key_value_set(self, key, value, allow_overwrite=False):
        self.values[key] = value
        self.values |= {f"jvlmm/beats/{process}": str(time.monotonic()) for process in self._beating}

    def key_value_dir_get(self, prefix):
        return [(key, value) for key, value in self.values.items() if key.startswith(prefix)]


class Ended(Exception):
    pass


def run_watch(monkeypatch, service, process):
    """Exit status with which the watch ends its process."""

    def end(status):
        raise Ended(status)

    for name, seconds in (("_PERIOD_S", 0.01), ("_SILENCE_S", 0.2), ("GRACE_S", 0.0)):
        monkeypatch.setattr(watch, name, seconds)
    monkeypatch.setattr(watch.os, "_exit", end)
    with pytest.raises(Ended) as ended:
        watch.Watch(service, process, 3).run()
    return ended.value.args[0]


def test_silence_is_found_by_the_first_process_and_told_to_the_others(monkeypatch, capsys):
    service = Service(beating=(1,))
    assert run_watch(monkeypatch, service, 0) == 1
    assert (
        "process 2 of 3 ended the job: no sign of life for 0 s; run the same command again" in capsys.readouterr().err
    )
    assert json.loads(service.values["jvlmm/failures/2"])[0] == 2


def test_a_failure_elsewhere_ends_this_process_with_its_reason(monkeypatch, capsys):
    service = Service()
    watch.announce(service, watch.Failure(0, 143, "it was told to end"))
    assert run_watch(monkeypatch, service, 1) == 143
    line = "jvlmm: error: process 0 of 3 ended the job: it was told to end\n"
    assert line == capsys.readouterr().err


PROGRAM = """
import os
from jvlmm.errors import DataError
from jvlmm.sharding.exchange import Exchange, Interrupted
from jvlmm.sharding.hosts import from_first, joined, process_index, wait_for_all

with joined(os.environ):
    me = process_index()
    assert from_first("name", lambda: {"from": me}) == {"from": 0}
    exchange = Exchange("data")
    for number in range(3):
        assert exchange.round([me, number]) == [[0, number], [1, number]]
    exchange.interrupt()
    try:
        exchange.round("unheard")
        raise AssertionError
    except Interrupted:
        pass
    wait_for_all("interrupted")
    exchange.restart()
    assert exchange.round(me) == [0, 1]
    print("agreed", flush=True)
    if me == 1:
        raise DataError("row 7 is damaged")
    exchange.round("never answered")
"""


def test_two_processes_of_slurm_agree_and_an_error_in_one_ends_both():
    step = {"JOB_ID": "1", "STEP_NODELIST": "localhost", "NTASKS": "2", "LOCALID": "0"}
    environment = {
        **os.environ,
        **{f"SLURM_{name}": value for name, value in step.items()},
        "JAX_COORDINATOR_PORT": str(free_port()),
        "PYTHONPATH": str(Path(jvlmm.__file__).parents[1]),
    }
    job = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            env={**environment, "SLURM_PROCID": str(index)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    started = time.monotonic()
    outputs = [process.communicate(timeout=120) for process in job]
    assert [process.returncode for process in job] == [1, 1], outputs
    assert all(out.splitlines()[-1] == "agreed" for out, _ in outputs)
    assert "process 1 of 2 ended the job: row 7 is damaged" in outputs[0][1]
    assert time.monotonic() - started < 60
