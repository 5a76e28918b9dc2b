"""launch/tpu_vm_worker.sh on this computer: a run that outlives the connection, and ends with jvlmm's status."""

import os
import signal
import time

import pytest
from launchers import PATIENCE

WORKER = "launch/tpu_vm_worker.sh"

JVLMM = """
if [[ $2 == long ]]; then
    trap 'echo saved; exit 143' TERM
    echo "ready $$"
    while :; do sleep 0.1; done
fi
echo "ran $*"
exit "$2"
"""


@pytest.fixture
def host(programs):
    """A home directory in which `jvlmm` is installed."""
    environment = programs.scripts.parent / ".jvlmm-venv" / "bin"
    environment.mkdir(parents=True)
    programs.add("jvlmm", JVLMM)
    (programs.bin / "jvlmm").rename(environment / "jvlmm")
    yield programs
    programs.run("bash", WORKER, "stop")


def worker(host, *arguments: str):
    return host.run("bash", WORKER, *arguments)


def wait_until_ready(host) -> None:
    log = host.scripts.parent / ".jvlmm-run" / "log"
    deadline = time.monotonic() + PATIENCE
    while not log.read_text().endswith("\n"):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("status", [0, 1, 137])
def test_follow_shows_the_log_and_takes_over_the_status(host, status):
    assert worker(host, "start", "run", str(status), "sft.note=two words").returncode == 0
    done = worker(host, "follow")
    assert done.returncode == status
    assert done.stdout == f"ran run {status} sft.note=two words\n"
    assert worker(host, "wait").returncode == status


def test_stop_lets_jvlmm_save_its_checkpoint(host):
    worker(host, "start", "run", "long")
    wait_until_ready(host)
    assert worker(host, "stop").returncode == 0
    done = worker(host, "follow")
    assert done.returncode == 143
    assert "saved" in done.stdout


def test_repeated_commands_leave_a_run_alone(host):
    host.add("uv", "")
    worker(host, "start", "run", "long")
    wait_until_ready(host)
    assert "already runs" in worker(host, "start", "run", "0").stdout
    assert "stays as it is" in worker(host, "install", "jvlmm[tpu]").stdout
    worker(host, "stop")
    assert [call[0] for call in host.calls()] == ["jvlmm"]


def test_a_run_that_ended_can_be_started_again(host):
    worker(host, "start", "run", "1")
    assert worker(host, "wait").returncode == 1
    worker(host, "start", "run", "0")
    assert worker(host, "wait").returncode == 0


def test_a_run_that_was_killed_with_its_supervisor_is_a_failure(host):
    worker(host, "start", "run", "long")
    wait_until_ready(host)
    place = host.scripts.parent / ".jvlmm-run"
    for pid in ((place / "pid").read_text(), (place / "log").read_text().removeprefix("ready ")):
        os.kill(int(pid), signal.SIGKILL)
    done = worker(host, "wait")
    assert done.returncode == 1
    assert "without an exit status" in done.stderr


@pytest.mark.parametrize(
    ("requirement", "installed"),
    [
        ("jvlmm[tpu] @ git+https://github.com/o/r@v1", "jvlmm[tpu] @ git+https://github.com/o/r@v1"),
        ("dist/jvlmm-0.1.0-py3-none-any.whl", "jvlmm[tpu] @ file://{home}/jvlmm-0.1.0-py3-none-any.whl"),
    ],
)
def test_install_uses_a_python_of_its_own(host, requirement, installed):
    host.add("uv", "")
    assert worker(host, "install", requirement).returncode == 0
    home = host.scripts.parent
    create, install = host.calls()
    assert create[:2] == ["uv", "venv"] and create[-1] == f"{home}/.jvlmm-venv"
    assert install[:3] == ["uv", "pip", "install"] and install[-1] == installed.format(home=home)


def test_bucket_is_mounted_once(host):
    for name in ("uv", "gcsfuse", "sudo"):
        host.add(name, "")
    host.add("mountpoint", 'exit "$(next mounted)"')
    host.script("mounted", 1, 0)
    for _ in range(2):
        assert worker(host, "install", "jvlmm[tpu]", "my-bucket").returncode == 0
    (mount,) = [call for call in host.calls() if call[0] == "gcsfuse"]
    assert mount[-2:] == ["my-bucket", "/mnt/my-bucket"]
    assert "--rename-dir-limit=200000" in mount


def test_unknown_task_is_refused(host):
    assert worker(host, "fly").returncode == 2
