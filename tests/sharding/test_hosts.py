"""How processes find each other, what they are told where they cannot, and how one ends the others."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from recipe_processes import free_port, start_processes

import jvlmm
from jvlmm.errors import ConfigError
from jvlmm.sharding import hosts
from jvlmm.sharding.hosts import Cluster, detected_cluster, explicit_cluster, from_first, joined, wait_for_all

COMPLETE = {"JVLMM_COORDINATOR": "host:1234", "JVLMM_NUM_PROCESSES": "4", "JVLMM_PROCESS_ID": "3"}


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


@pytest.mark.parametrize("seconds", ["soon", "0", "-1", "nan", "1e9"])
def test_a_time_to_wait_that_is_none_is_named(seconds):
    with pytest.raises(ConfigError, match=f"JVLMM_START_TIMEOUT_S='{seconds}' is no number of seconds"):
        hosts.start_processes({**COMPLETE, "JVLMM_START_TIMEOUT_S": seconds})


def test_a_single_process_stays_as_it_is():
    with joined({}):
        assert from_first("anything", lambda: 3) == 3
        wait_for_all("anything")
    with joined({**COMPLETE, "JVLMM_NUM_PROCESSES": "1", "JVLMM_PROCESS_ID": "0"}):
        assert from_first("anything", lambda: 4) == 4


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


ENDED = """
import os, sys, time
from jvlmm.sharding import rendezvous
from jvlmm.sharding.hosts import from_first, joined, process_index, wait_for_all

rendezvous.SILENCE_S = 3.0
with joined(os.environ):
    me = process_index()
    wait_for_all("here")
    if me == int(sys.argv[1]):
        os.kill(os.getpid(), int(sys.argv[2]))
    from_first("never", lambda: time.sleep(600))
"""


@pytest.mark.parametrize("process", [0, 1])
@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (signal.SIGKILL, "it is gone without a word .*; look there, then run the same command again"),
        (signal.SIGSTOP, r"no sign of life for \d s .*; run the same command again"),
    ],
)
def test_the_end_of_a_process_ends_the_other_with_one_last_line(number, reason, process):
    job = start_processes(ENDED, {}, str(process), str(int(number)))
    survivor = job[1 - process]
    _, error = survivor.communicate(timeout=60)
    job[process].kill()
    job[process].communicate(timeout=60)
    assert survivor.returncode == 1
    lines = error.splitlines()
    line = f"jvlmm: error: process {process} of 2 ended the job: {reason}, it resumes from the last checkpoint"
    assert re.fullmatch(line, lines[-1]), error
    assert not any("terminated" in line.lower() or "***" in line for line in lines[:-1]), "no stack trace before it"


BROKEN = """
import os
if os.environ["JVLMM_PROCESS_ID"] == "1":
    os.environ["JAX_PLATFORMS"] = "nothing"
from jvlmm.sharding.hosts import joined

with joined(os.environ):
    pass
"""


def test_a_process_whose_devices_cannot_be_found_ends_the_other():
    job = start_processes(BROKEN, {})
    errors = [process.communicate(timeout=100)[1].splitlines()[-1] for process in job]
    assert [process.returncode for process in job] == [1, 1]
    assert errors[0].startswith("jvlmm: error: process 1 of 2 ended the job: cannot join the other processes")
    assert "nothing" in errors[0] and "nothing" in errors[1]
