"""launch/xpk.sh against a stand-in for xpk."""

import shlex

import pytest
from launchers import CONFIG, assert_refused

XPK = "launch/xpk.sh"
WHERE = ("--name", "first", "--cluster", "my-cluster", "--project", "my-project", "--zone", "us-west4-a")
WHAT = ("--accelerator", "v5litepod-16", "--image", "i:t", "--storage", "my-bucket", "--workdir", "/mnt/my-bucket/r")
TRAIN = (XPK, "train", *WHERE, *WHAT)
THERE = "--cluster=my-cluster --project=my-project --zone=us-west4-a"


@pytest.fixture
def xpk(programs):
    programs.add("xpk", 'exit "$(next "$2")"')
    for verb in ("create", "list", "delete"):
        programs.script(verb, 0)
    return programs


def verbs(xpk) -> list[str]:
    return [call[2] for call in xpk.calls()]


def test_dry_run_prints_every_command(xpk):
    options = ("--slices", "2", "--env", "A=b c", "--max-restarts", "7", "--grace-period", "600", "--dry-run")
    done = xpk.run(*TRAIN, *options, CONFIG, "sft.note=two words")
    assert done.returncode == 0 and xpk.calls() == []
    create, wait, delete = (shlex.split(line) for line in done.stdout.splitlines())
    assert create == shlex.split(
        "xpk workload create --workload=first --tpu-type=v5litepod-16 --num-slices=2 --docker-image=i:t "
        "--storage=my-bucket --max-restarts=7 --restart-on-exit-codes=1 --termination-grace-period-seconds=600 "
        f"'--env=A=b c' \"--command=exec jvlmm run {CONFIG} --workdir /mnt/my-bucket/r 'sft.note=two words'\" {THERE}"
    )
    assert wait == shlex.split(f"xpk workload list --wait-for-job-completion=first {THERE}")
    assert delete == shlex.split(f"xpk workload delete --workload=first --force {THERE}")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), ("unknown command ''", "train")),
        (("fly", *WHERE), ("unknown command 'fly'",)),
        (("delete", *WHERE[2:]), ("missing --name",)),
        (("delete", "--name", "first", *WHERE[4:]), ("missing --cluster",)),
        (("delete", *WHERE, CONFIG), ("delete takes no CONFIG",)),
        (("create", *WHERE, *WHAT), ("missing CONFIG",)),
        (("create", *WHERE, *WHAT[2:], CONFIG), ("missing --accelerator",)),
        (("create", *WHERE, *WHAT, "--accelerator", "tpu-v9", CONFIG), ("'tpu-v9'", "v5litepod-N")),
        (("create", *WHERE, *WHAT[:2], *WHAT[4:], CONFIG), ("missing --image",)),
        (("create", *WHERE, *WHAT, "--workdir", "gs://b/r", CONFIG), ("'gs://b/r'", "mount point")),
        (("create", *WHERE, *WHAT, "--slices", "x", CONFIG), ("--slices", "'x'")),
        (("create", *WHERE, *WHAT, CONFIG, "steps"), ("'steps' after CONFIG",)),
    ],
)
def test_wrong_usage_is_one_line_and_touches_nothing(xpk, arguments, words):
    assert_refused(xpk.run(XPK, *arguments), *words)
    assert xpk.calls() == []


def test_training_creates_waits_and_deletes(xpk):
    assert xpk.run(*TRAIN, CONFIG).returncode == 0
    assert verbs(xpk) == ["create", "list", "delete"]


def test_status_of_the_workload_is_passed_on(xpk):
    xpk.script("list", 125)
    assert xpk.run(*TRAIN, CONFIG).returncode == 125
    assert verbs(xpk)[-1] == "delete"


def test_workload_that_is_refused_is_not_waited_for(xpk):
    xpk.script("create", 1)
    assert xpk.run(*TRAIN, CONFIG).returncode == 1
    assert verbs(xpk) == ["create"]


@pytest.mark.parametrize(("command", "verb"), [("wait", "list"), ("delete", "delete")])
def test_single_steps(xpk, command, verb):
    assert xpk.run(XPK, command, *WHERE).returncode == 0
    assert verbs(xpk) == [verb]
