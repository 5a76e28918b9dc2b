"""launch/tpu_vm.sh against a stand-in for gcloud: what it asks for, and what it does when slices are taken away."""

import os
import shlex
import signal
import time

import pytest
from launchers import CONFIG, PATIENCE, ROOT, assert_refused

TPU_VM = "launch/tpu_vm.sh"
WHERE = ("--name", "first", "--project", "my-project", "--zone", "us-west4-a")
SLICE = ("--accelerator", "v5litepod-16")
INSTALL = "jvlmm[tpu] @ git+https://github.com/o/r@v1"
RUN = ("--install", INSTALL, "--workdir", "gs://my-bucket/runs/first", CONFIG, "sft.steps=3")
TRAIN = (TPU_VM, "train", *WHERE, *SLICE, "--poll", "0", *RUN)

GCLOUD = """
case "$*" in
    *" describe "*)
        answer=$(next states)
        if [[ $answer == MISSING ]]; then
            echo "ERROR: (gcloud) NOT_FOUND: Resource was not found" >&2
            exit 1
        fi
        [[ $answer != BROKEN ]] || { echo "ERROR: (gcloud) network unreachable" >&2; exit 1; }
        echo "$answer"
        ;;
    *" create "*) exit "$(next create)" ;;
    *"worker.sh install"*) exit "$(next install)" ;;
    *"worker.sh follow"*)
        echo "step 1"
        status=$(next follow)
        [[ $status != forever ]] || exec sleep 300
        exit "$status"
        ;;
    *"worker.sh wait"*) exit "$(next wait)" ;;
esac
"""


@pytest.fixture
def gcloud(programs):
    programs.add("gcloud", GCLOUD)
    for name in ("create", "install", "follow", "wait"):
        programs.script(name, 0)
    programs.script("states", "ACTIVE")
    return programs


def steps(gcloud) -> list[str]:
    """What was asked of gcloud, in a word each; looks at the state are left out."""
    words = []
    for call in gcloud.calls():
        assert call[:4] == ["gcloud", "compute", "tpus", "queued-resources"]
        remote = [word.removeprefix("--command=") for word in call if word.startswith("--command=")]
        tasks = ("install", "start", "follow", "wait", "stop")
        words.append(next(task for task in tasks if f"worker.sh {task}" in remote[0]) if remote else call[4])
    return [word for word in words if word != "describe"]


def dry(gcloud, *command: str) -> list[str]:
    done = gcloud.run(*with_options(command, "--dry-run"))
    assert done.returncode == 0, done.stderr
    assert gcloud.calls() == []
    return done.stdout.splitlines()


def with_options(command: tuple[str, ...], *options: str) -> list[str]:
    place = command.index(CONFIG) if CONFIG in command else len(command)
    return [*command[:place], *options, *command[place:]]


def test_dry_run_of_a_training_prints_every_command(gcloud):
    gc = "gcloud compute tpus queued-resources"
    there = "--project=my-project --zone=us-west4-a --quiet"
    every = "--node=all --worker=all --strict-host-key-checking=no"
    one = "--node=0 --worker=0 --strict-host-key-checking=no"
    lines = dry(gcloud, *TRAIN)
    assert [shlex.split(line) for line in lines] == [
        shlex.split(line)
        for line in (
            f"{gc} create first --node-id=first --accelerator-type=v5litepod-16 "
            f"--runtime-version=v2-alpha-tpuv5-lite --spot {there}",
            f"{gc} describe first '--format=value(state.state)' {there}",
            f"{gc} scp {ROOT}/launch/tpu_vm_worker.sh {CONFIG} first: {every} {there}",
            f"""{gc} ssh first {every} "--command=bash tpu_vm_worker.sh install '{INSTALL}' my-bucket" {there}""",
            f'{gc} ssh first {every} "--command=env bash tpu_vm_worker.sh start run sft_qwen2_5_vl_7b.py '
            f'--workdir /mnt/my-bucket/runs/first sft.steps=3" {there}',
            f'{gc} ssh first {one} "--command=bash tpu_vm_worker.sh follow" {there}',
            f'{gc} ssh first {every} "--command=bash tpu_vm_worker.sh wait" {there}',
            f"{gc} delete first --force {there}",
        )
    ]


@pytest.mark.parametrize(
    ("options", "expected", "absent"),
    [
        ((), "--spot", "--reserved"),
        (("--reserved",), "--reserved", "--spot"),
        (("--on-demand",), "--node-id=first", "--spot"),
        (("--slices=2",), "--node-count=2 --node-prefix=first", "--node-id"),
        (("--runtime-version", "mine"), "--runtime-version=mine", "v2-alpha"),
        (("--accelerator=v4-8",), "--runtime-version=tpu-ubuntu2204-base", "v2-alpha"),
        (("--accelerator=v5p-8",), "--runtime-version=v2-alpha-tpuv5 ", "lite"),
        (("--accelerator=v6e-8",), "--runtime-version=v2-alpha-tpuv6e", "lite"),
        (("--create-flag=--internal-ips", "--create-flag=--network=n"), "--internal-ips --network=n", "--create-flag"),
    ],
)
def test_options_of_the_request(gcloud, options, expected, absent):
    request = dry(gcloud, TPU_VM, "create", *WHERE, *SLICE, *options)[0]
    assert expected in request and absent not in request


def test_words_keep_their_boundaries_through_two_shells(gcloud):
    value = 'it\'s $HOME; "two" words'
    line = dry(gcloud, TPU_VM, "run", *WHERE, "--env", f"NOTE={value}", *RUN, f"sft.note={value}")[2]
    remote = next(word for word in shlex.split(line) if word.startswith("--command="))
    words = shlex.split(remote.removeprefix("--command="))
    assert words[:2] == ["env", f"NOTE={value}"] and words[-1] == f"sft.note={value}"


@pytest.mark.parametrize("command", ["logs", "status", "delete"])
def test_other_commands_print_one_line(gcloud, command):
    (line,) = dry(gcloud, TPU_VM, command, *WHERE)
    assert line.startswith("gcloud compute tpus queued-resources ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), ("unknown command ''", "train, create")),
        (("fly", *WHERE), ("unknown command 'fly'", "train, create")),
        (("create", *WHERE[2:], *SLICE), ("missing --name", "--name my-run")),
        (("create", *WHERE, *SLICE, "--name", "My_Run"), ("--name 'My_Run'", "lower-case")),
        (("create", "--name", "first", "--zone", "z", *SLICE), ("missing --project",)),
        (("create", "--name", "first", "--project", "p", *SLICE), ("missing --zone",)),
        (("create", *WHERE), ("missing --accelerator", "v5litepod-16")),
        (("create", *WHERE, "--accelerator", "v3-8"), ("'v3-8'", "v5litepod-N")),
        (("create", *WHERE, "--accelerator", "h100"), ("'h100'", "v6e-N")),
        (("create", *WHERE, *SLICE, "--slices", "none"), ("--slices", "'none'")),
        (("create", *WHERE, *SLICE, "--slices", "0"), ("--slices", "at least 1")),
        (("create", *WHERE, *SLICE, "--slices"), ("--slices", "lacks its value")),
        (("create", *WHERE, *SLICE, "--colour", "red"), ("unknown option --colour", "--help")),
        (("create", *WHERE, *SLICE, CONFIG), ("create takes no CONFIG",)),
        (("train", *WHERE, *SLICE), ("missing CONFIG", "configs/")),
        (("train", *WHERE, *SLICE, "configs/none.py"), ("'configs/none.py' is no file",)),
        (("train", *WHERE, *SLICE, CONFIG), ("missing --install", "git+https")),
        (("train", *WHERE, *SLICE, "--install", "none.whl", CONFIG), ("'none.whl' is no file", "pip wheel")),
        (("train", *WHERE, *SLICE, "--install", "jvlmm[tpu]", CONFIG), ("missing --workdir", "gs://")),
        (("train", *WHERE, *SLICE, "--install", "x", "--workdir", "runs", CONFIG), ("--workdir 'runs'", "gs://")),
        (("train", *WHERE, *SLICE, "--install", "x", "--workdir", "gs://b", CONFIG), ("gs://BUCKET/PATH",)),
        (("train", *WHERE, *SLICE, "--env", "A", *RUN), ("--env 'A'", "NAME=VALUE")),
        (("train", *WHERE, *SLICE, *RUN, "--keep"), ("'--keep' after CONFIG", "before CONFIG")),
    ],
)
def test_wrong_usage_is_one_line_and_touches_nothing(gcloud, arguments, words):
    assert_refused(gcloud.run(TPU_VM, *arguments), *words)
    assert gcloud.calls() == []


def test_help_shows_the_commands_and_options(gcloud):
    done = gcloud.run(TPU_VM, "--help")
    assert done.returncode == 0
    assert all(word in done.stdout for word in ("train", "--accelerator", "--max-restarts", "--dry-run"))


def test_training_creates_waits_runs_and_deletes(gcloud):
    gcloud.script("states", "MISSING", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE")
    done = gcloud.run(*TRAIN)
    assert done.returncode == 0, done.stderr
    assert "step 1" in done.stdout
    assert "PROVISIONING" in done.stderr
    assert steps(gcloud) == ["create", "scp", "install", "start", "follow", "wait", "delete"]


def test_slices_that_are_there_are_used(gcloud):
    assert gcloud.run(*TRAIN).returncode == 0
    assert steps(gcloud) == ["scp", "install", "start", "follow", "wait", "delete"]


@pytest.mark.parametrize("status", [1, 134, 143, 255])
def test_preempted_training_resumes_on_new_slices(gcloud, status):
    gcloud.script("follow", status, 0)
    gcloud.script("states", "MISSING", "ACTIVE", "ACTIVE", "SUSPENDING", "SUSPENDED", "MISSING", "ACTIVE")
    done = gcloud.run(*TRAIN)
    assert done.returncode == 0, done.stderr
    once = ["create", "scp", "install", "start", "follow"]
    assert steps(gcloud) == [*once, "delete", *once, "wait", "delete"]
    starts = [call for call in gcloud.calls() if any("worker.sh start" in word for word in call)]
    assert starts[0] == starts[1]
    assert f"interrupted with status {status}; restart 1 of 20" in done.stderr


def test_slices_preempted_before_they_were_ready_are_requested_anew(gcloud):
    gcloud.script("states", "MISSING", "PROVISIONING", "SUSPENDED", "MISSING", "ACTIVE")
    assert gcloud.run(*TRAIN).returncode == 0
    assert steps(gcloud)[:4] == ["create", "delete", "create", "scp"]


def test_training_that_got_sigterm_on_slices_that_stay_starts_again_there(gcloud):
    gcloud.script("follow", 143, 0)
    assert gcloud.run(*TRAIN).returncode == 0
    assert steps(gcloud).count("start") == 2
    assert "create" not in steps(gcloud)


@pytest.mark.parametrize(("script", "status"), [("follow", 1), ("follow", 2), ("wait", 134), ("install", 7)])
def test_failure_ends_the_training_with_its_status_and_deletes(gcloud, script, status):
    gcloud.script(script, status)
    assert gcloud.run(*TRAIN).returncode == status
    assert steps(gcloud).count("install") == 1
    assert steps(gcloud)[-1] == "delete"


def test_restarts_are_counted(gcloud):
    gcloud.script("follow", 143)
    done = gcloud.run(*with_options(TRAIN, "--max-restarts", "1"))
    assert done.returncode == 143
    assert steps(gcloud).count("start") == 2
    assert "gave up after 1 restarts" in done.stderr


def test_request_that_fails_is_explained_and_deleted(gcloud):
    gcloud.script("states", "MISSING", "FAILED")
    done = gcloud.run(*TRAIN)
    assert done.returncode == 1
    assert "quota" in done.stderr and "describe first" in done.stderr
    assert steps(gcloud) == ["create", "delete"]


def test_request_that_is_refused_deletes_nothing(gcloud):
    gcloud.script("states", "MISSING")
    gcloud.script("create", 3)
    assert gcloud.run(*TRAIN).returncode == 3
    assert steps(gcloud) == ["create"]


def test_state_that_cannot_be_read_is_asked_again_and_then_reported(gcloud):
    gcloud.script("states", "BROKEN", "BROKEN", "ACTIVE")
    assert gcloud.run(TPU_VM, "status", *WHERE, "--poll", "0").stdout == "ACTIVE\n"
    gcloud.script("states", "BROKEN")
    assert_refused(gcloud.run(TPU_VM, "status", *WHERE, "--poll", "0"), "network unreachable", status=1)


def test_keep_leaves_the_slices_and_says_how_to_delete_them(gcloud):
    done = gcloud.run(*with_options(TRAIN, "--keep"))
    assert done.returncode == 0
    assert "delete" not in steps(gcloud)
    assert "queued-resources delete first --force" in done.stderr


def test_run_is_one_attempt(gcloud):
    gcloud.script("follow", 143)
    assert gcloud.run(TPU_VM, "run", *WHERE, *RUN).returncode == 143
    assert steps(gcloud) == ["scp", "install", "start", "follow"]


@pytest.mark.parametrize(
    ("sent", "status", "last"),
    [(signal.SIGINT, 130, ["stop", "delete"]), (signal.SIGTERM, 143, ["stop", "delete"]), (signal.SIGHUP, 129, [])],
)
def test_interrupted_launcher_saves_and_deletes_but_a_closed_terminal_does_not(gcloud, sent, status, last):
    gcloud.script("follow", "forever")
    launcher = gcloud.start(*TRAIN)
    deadline = time.monotonic() + PATIENCE
    while "follow" not in steps(gcloud) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(launcher.pid, sent)
    launcher.communicate(timeout=PATIENCE)
    assert launcher.returncode == status
    assert steps(gcloud) == ["scp", "install", "start", "follow", *last]


def test_missing_gcloud_is_one_line(programs):
    programs.environment["PATH"] = str(programs.bin)
    for tool in ("bash", "dirname", "env"):
        (programs.bin / tool).symlink_to(f"/usr/bin/{tool}")
    assert_refused(programs.run("/usr/bin/bash", TPU_VM, "delete", *WHERE), "gcloud is not installed", status=1)
