"""How processes meet: who is missing or contradicts whom is told to all of them, and what ends one ends all."""

import queue
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
from recipe_processes import free_port

from jvlmm.errors import ConfigError
from jvlmm.sharding import rendezvous
from jvlmm.sharding.rendezvous import Cluster, Failure, Rendezvous


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    for name, seconds in (
        ("BEAT_S", 0.05),
        ("SILENCE_S", 0.6),
        ("GRACE_S", 0.5),
        ("_PATIENCE_S", 0.2),
        ("_RETRY_S", 0.05),
    ):
        monkeypatch.setattr(rendezvous, name, seconds)


class Job:
    """Processes of one job that are threads of this one; `ended` receives (process, failure)."""

    def __init__(self, stack):
        self.port, self.ended = free_port(), queue.Queue()
        self._stack, self._threads = stack, stack.enter_context(ThreadPoolExecutor(8))

    def process(self, index, count=2, versions="v1", address="127.0.0.1"):
        cluster = Cluster(f"{address}:{self.port}", count, index)
        member = Rendezvous(cluster, versions, lambda failure: self.ended.put((index, failure)))
        self._stack.callback(member.leave)
        return member

    def join(self, *members, start_s=5.0):
        """What each of them is told: a port, or the text of an error."""

        def told(member):
            try:
                return member.join(start_s)
            except ConfigError as error:
                return str(error)

        return list(self._threads.map(told, members))


@pytest.fixture
def job():
    with ExitStack() as stack:
        yield Job(stack)


@pytest.mark.parametrize("address", ["127.0.0.1", "localhost"])
def test_all_meet_and_part_in_peace(job, address):
    members = [job.process(index, count=4, address=address) for index in (2, 0, 3, 1)]
    assert len(set(job.join(*members))) == 1
    for member in members:
        member.leave()
    assert job.ended.empty()


def test_a_process_may_come_before_the_first_one(job):
    late, early = job.process(0), job.process(1)
    with ThreadPoolExecutor(1) as threads:
        joining = threads.submit(early.join, 5.0)
        time.sleep(0.3)
        assert late.join(5.0) == joining.result(5)


def test_wrong_counts_are_told_to_all(job):
    members = [job.process(0, count=3), job.process(2, count=4)]
    assert set(job.join(*members)) == {
        "process 0 is told of 3 processes and process 2 of 4: give all of them the same number (JVLMM_NUM_PROCESSES)"
    }


@pytest.mark.parametrize("number", [0, 1])
def test_two_with_one_number_are_told_to_all(job, number):
    members = [job.process(0, count=3), job.process(1, count=3), job.process(number, count=3)]
    assert set(job.join(*members)) == {
        f"two processes have the number {number} (JVLMM_PROCESS_ID): number them from 0 to 2, each number once"
    }


def test_other_versions_are_told_to_all(job):
    assert set(job.join(job.process(0), job.process(1, versions="v2"))) == {
        "process 0 runs v1 and process 1 v2: install the same in all"
    }


def test_who_does_not_come_is_named_to_those_who_wait(job, capsys):
    told = job.join(job.process(0, count=4), job.process(2, count=4), start_s=0.8)
    assert len(set(told)) == 1 and told[0].startswith("processes 1, 3 of 4 did not come within 1 s")
    assert capsys.readouterr().err == "waiting for processes 1, 3 of 4\n"


def test_a_first_process_that_does_not_come_is_named(job, capsys):
    (told,) = job.join(job.process(1), start_s=1.0)
    place = f"127.0.0.1:{job.port}"
    assert told.startswith(f"JVLMM_COORDINATOR={place}: no process 0 there within 1 s (")
    assert "Connect call failed" in told
    assert capsys.readouterr().err.startswith(f"waiting for process 0 at {place}")


def test_a_port_that_another_program_holds_is_named_by_both(job):
    with socket.create_server(("127.0.0.1", job.port)) as stranger:
        threading.Thread(target=stranger.accept, daemon=True).start()
        first, second = job.join(job.process(0), job.process(1), start_s=1.0)
    assert first.startswith(f"JVLMM_COORDINATOR=127.0.0.1:{job.port}: port {job.port} cannot be used here (Address")
    assert second.startswith(f"JVLMM_COORDINATOR=127.0.0.1:{job.port}: no process 0 there within 1 s (")


def test_strangers_are_ignored(job):
    members = [job.process(0), job.process(1)]
    with ThreadPoolExecutor(1) as threads:
        joining = threads.submit(members[0].join, 5.0)
        time.sleep(0.3)
        for words in (b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 100_000, b"[1]\n", b""):
            with socket.create_connection(("127.0.0.1", job.port), timeout=5) as stranger:
                stranger.sendall(words)
        assert members[1].join(5.0) == joining.result(5)


def test_who_comes_to_a_job_that_has_begun_is_refused_and_disturbs_nobody(job):
    job.join(job.process(0), job.process(1))
    (told,) = job.join(job.process(1), start_s=1.0)
    assert "have begun without this process: wait for its end" in told
    time.sleep(0.3)
    assert job.ended.empty()


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_a_failure_ends_the_others_with_its_status_and_reason(job, failing):
    members = [job.process(index, count=3) for index in range(3)]
    job.join(*members)
    failure = Failure(failing, 143, "it was told to end")
    members[failing].announce(failure)
    heard = [job.ended.get(timeout=5) for _ in range(2)]
    assert sorted(heard, key=lambda pair: pair[0]) == [(index, failure) for index in range(3) if index != failing]


def cut(member):
    """Close this process's connections, as its death does."""

    def close():
        writers = [member._here._writer] if hasattr(member._here, "_writer") else member._here._present.values()
        for writer in list(writers):
            writer.transport.abort()

    member._here._ended = True
    member._loop.call_soon_threadsafe(close)


def stop(member):
    """Halt this process's thread, as SIGSTOP does."""
    member._loop.call_soon_threadsafe(time.sleep, 0.9)


@pytest.mark.parametrize(("lose", "reason"), [(cut, "it is gone without a word"), (stop, "no sign of life for 1 s")])
@pytest.mark.parametrize("lost", [0, 2])
def test_a_process_that_is_lost_ends_the_others(job, lose, reason, lost):
    members = [job.process(index, count=3) for index in range(3)]
    job.join(*members)
    lose(members[lost])
    told = {}
    while len(told.keys() - {lost}) < 2:  # who was stopped and goes on is told, too
        process, failure = job.ended.get(timeout=5)
        told[process] = failure
        assert failure.process == lost or process == lost
    for failure in (told[process] for process in range(3) if process != lost):
        assert failure.status == 1 and failure.reason.startswith(reason)
        assert failure.reason.endswith("it resumes from the last checkpoint")


@pytest.mark.parametrize("lost", [0, 1])
def test_a_process_that_is_lost_before_all_have_met_is_told(job, lost):
    members = [job.process(index, count=3) for index in range(2)]
    with ThreadPoolExecutor(2) as threads:
        waiting = [threads.submit(member.join, 5.0) for member in members]
        time.sleep(0.3)
        cut(members[lost])
        with pytest.raises(ConfigError, match=r"process 0 at .* ended" if lost == 0 else "process 1 of 3: it is gone"):
            waiting[1 - lost].result(5)
        if lost == 0:
            members[0]._loop.call_soon_threadsafe(members[0]._here._met.set_result, 0)
        else:
            with pytest.raises(ConfigError):
                waiting[1].result(5)
