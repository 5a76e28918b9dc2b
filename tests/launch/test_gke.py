"""The manifests for GKE against JobSet's and Kubernetes' schemas, and launch/gke.sh against a stand-in for kubectl."""

import copy
import json
import os
import shlex
import signal
import time

import jsonschema
import pytest
from launchers import CONFIG, PATIENCE, ROOT, assert_refused

GKE = "launch/gke.sh"
JOBSET = "launch/gke/jobset.py"
EXAMPLES = ROOT / "launch" / "gke" / "examples"
SCHEMA = json.loads((ROOT / "tests" / "launch" / "jobset.schema.json").read_text())

IMAGE = ("--image", "us-docker.pkg.dev/my-project/my-repository/jvlmm:0.1.0")
NEEDED = {
    "--name": "first",
    "--accelerator": "v5litepod-16",
    "--image": IMAGE[1],
    "--workdir": "gs://my-bucket/runs/first",
}
DATA = ("sft.model=/mnt/my-bucket/Qwen2.5-VL-7B-Instruct", "sft.sources.data.path=/mnt/my-bucket/train.jsonl")
COMMANDS = {
    "v5litepod_16_spot.json": (
        *("--name", "sft-7b", "--accelerator", "v5litepod-16", "--spot", *IMAGE, "--service-account", "jvlmm"),
        *("--workdir", "gs://my-bucket/runs/sft-7b", CONFIG, *DATA),
    ),
    "v6e_16_two_slices.json": (
        *("--name", "sft-7b-two", "--accelerator", "v6e-16", "--slices", "2", "--reservation", "my-reservation"),
        *(*IMAGE, "--service-account", "jvlmm", "--workdir", "gs://my-bucket/runs/sft-7b-two"),
        *("--env", "WANDB_MODE=offline", CONFIG, *DATA),
    ),
}

KUBECTL = """
case $1 in
    get)
        answer=$(next states)
        [[ $answer != BROKEN ]] || { echo "Unable to connect to the server" >&2; exit 1; }
        [[ $answer == Running ]] || printf '%s' "$answer"
        ;;
    logs)
        [[ $(next logs) == forever ]] && exec sleep 300
        echo "step 1"
        ;;
esac
"""


@pytest.fixture
def kubectl(programs):
    programs.add("kubectl", KUBECTL)
    programs.script("logs", 0)
    return programs


def needed(**replaced: str) -> list[str]:
    values = {**NEEDED, **{f"--{name}": value for name, value in replaced.items()}}
    return [word for name, value in values.items() if value for word in (name, value)]


def manifest(programs, *arguments: str, **replaced: str) -> dict:
    done = programs.run(JOBSET, *needed(**replaced), *arguments, CONFIG, "sft.steps=3")
    assert done.returncode == 0, done.stderr
    written = json.loads(done.stdout)
    jsonschema.validate(written, SCHEMA)
    return written


def job_of(written: dict) -> dict:
    return written["spec"]["replicatedJobs"][0]["template"]["spec"]


def pod_of(written: dict) -> dict:
    return job_of(written)["template"]["spec"]


def test_schema_is_one():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_every_example_has_its_command():
    assert {path.name for path in EXAMPLES.iterdir()} == set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_are_what_the_program_writes(programs, name):
    done = programs.run(JOBSET, *COMMANDS[name])
    assert done.returncode == 0, done.stderr
    assert done.stdout == (EXAMPLES / name).read_text()
    jsonschema.validate(json.loads(done.stdout), SCHEMA)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "failurePolicy", "maxRestart"), 3),
        (("spec", "replicatedJobs", 0, "template", "spec", "backoffLimits"), 0),
        (("spec", "replicatedJobs", 0, "template", "spec", "template", "spec", "terminationGracePeriod"), 300),
        (("spec", "replicatedJobs", 0, "replicas"), "2"),
    ],
)
def test_schema_refuses_misspelt_and_mistyped_fields(path, value):
    written = copy.deepcopy(json.loads((EXAMPLES / "v5litepod_16_spot.json").read_text()))
    place = written
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(written, SCHEMA)


@pytest.mark.parametrize(
    ("accelerator", "label", "topology", "hosts", "chips"),
    [
        ("v4-8", "tpu-v4-podslice", "2x2x1", 1, 4),
        ("v4-128", "tpu-v4-podslice", "4x4x4", 16, 4),
        ("v5litepod-1", "tpu-v5-lite-podslice", "1x1", 1, 1),
        ("v5litepod-16", "tpu-v5-lite-podslice", "4x4", 4, 4),
        ("v5litepod-256", "tpu-v5-lite-podslice", "16x16", 64, 4),
        ("v5p-16", "tpu-v5p-slice", "2x2x2", 2, 4),
        ("v6e-4", "tpu-v6e-slice", "2x2", 1, 4),
        ("v6e-64", "tpu-v6e-slice", "8x8", 16, 4),
    ],
)
def test_accelerator_decides_nodes_and_pods(programs, accelerator, label, topology, hosts, chips):
    written = manifest(programs, accelerator=accelerator)
    job, pod = job_of(written), pod_of(written)
    assert job["parallelism"] == job["completions"] == hosts
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-accelerator"] == label
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == topology
    assert pod["containers"][0]["resources"] == {"limits": {"google.com/tpu": chips}}


def test_capacity_is_spot_unless_said_otherwise(programs):
    spot = pod_of(manifest(programs))
    assert spot["nodeSelector"]["cloud.google.com/gke-spot"] == "true" and spot["tolerations"]
    on_demand = pod_of(manifest(programs, "--on-demand"))
    assert "cloud.google.com/gke-spot" not in on_demand["nodeSelector"] and not on_demand["tolerations"]
    reserved = pod_of(manifest(programs, "--reservation", "mine"))
    assert reserved["nodeSelector"]["cloud.google.com/reservation-name"] == "mine"
    assert "cloud.google.com/gke-spot" not in reserved["nodeSelector"]


def test_preempted_pods_restart_together_after_time_for_a_checkpoint(programs):
    written = manifest(programs, "--max-restarts", "7", "--grace-period", "600")
    policy = written["spec"]["failurePolicy"]
    assert (policy["maxRestarts"], policy["restartStrategy"]) == (7, "BlockingRecreate")
    assert job_of(written)["backoffLimit"] == 0
    assert pod_of(written)["terminationGracePeriodSeconds"] == 600


def test_wrong_usage_alone_fails_at_once(programs):
    written = manifest(programs)
    (rule,) = job_of(written)["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["values"] == [2]
    assert rule["onExitCodes"]["containerName"] == pod_of(written)["containers"][0]["name"]


def test_jvlmm_is_the_process_that_gets_the_signal_and_its_bucket_is_mounted(programs):
    pod = pod_of(manifest(programs, "--env", "A=b=c", "--slices", "2"))
    (container,) = pod["containers"]
    workdir = "/mnt/my-bucket/runs/first"
    assert container["command"] == ["jvlmm", "run", CONFIG, "--workdir", workdir, "sft.steps=3"]
    assert container["env"] == [{"name": "A", "value": "b=c"}]
    assert container["volumeMounts"] == [{"name": pod["volumes"][0]["name"], "mountPath": "/mnt/my-bucket"}]
    assert pod["volumes"][0]["csi"]["volumeAttributes"]["bucketName"] == "my-bucket"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (needed(name=""), ("--name",)),
        (needed(name="My_Run"), ("'My_Run'", "lower-case")),
        (needed(image=""), ("--image",)),
        (needed(accelerator=""), ("--accelerator",)),
        (needed(accelerator="v3-8"), ("'v3-8'", "v5litepod-16")),
        (needed(accelerator="v5litepod-7"), ("'v5litepod-7'", "v5litepod-8")),
        (needed(workdir="/scratch"), ("'/scratch'", "gs://BUCKET/PATH")),
        (needed(workdir="gs://my-bucket"), ("gs://BUCKET/PATH",)),
        ((*needed(), "--slices", "0"), ("--slices", "at least 1")),
        ((*needed(accelerator="v6e-4"), "--slices", "2"), ("v6e-4", "one larger slice")),
        ((*needed(), "--spot", "--on-demand"), ("--on-demand", "--spot")),
        ((*needed(), "--env", "A"), ("--env", "NAME=VALUE")),
        ((*needed(), "--colour=red"), ("--colour=red",)),
    ],
)
def test_wrong_usage_of_the_generator_is_one_line(programs, arguments, words):
    assert_refused(programs.run(JOBSET, *arguments, CONFIG), *words)


def test_config_is_needed_and_overrides_are_overrides(programs):
    assert_refused(programs.run(JOBSET, *needed()), "CONFIG")
    assert_refused(programs.run(JOBSET, *needed(), CONFIG, "steps"), "'steps'", "a.b=c")


MANIFEST = EXAMPLES / "v5litepod_16_spot.json"
TRAIN = (GKE, "train", MANIFEST, "--poll", "0")


def verbs(kubectl) -> list[str]:
    return [call[1] for call in kubectl.calls() if call[1] != "get"]


def test_dry_run_prints_every_command(kubectl):
    done = kubectl.run(*TRAIN, "--dry-run")
    assert done.returncode == 0 and kubectl.calls() == []
    first = "jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0"
    selector = f"--selector=jobset.sigs.k8s.io/jobset-name=sft-7b,{first}"
    assert [shlex.split(line) for line in done.stdout.splitlines()] == [
        ["kubectl", "apply", f"--filename={MANIFEST}"],
        ["kubectl", "logs", "--follow", "--tail=-1", "--container=jvlmm", selector],
        ["kubectl", "get", f"--filename={MANIFEST}", "--output=jsonpath={.status.terminalState}"],
        ["kubectl", "delete", f"--filename={MANIFEST}", "--ignore-not-found"],
    ]


@pytest.mark.parametrize("command", ["logs", "status", "delete"])
def test_other_commands_print_one_line(kubectl, command):
    done = kubectl.run(GKE, command, MANIFEST, "--dry-run")
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), ("unknown command ''", "train")),
        (("fly", MANIFEST), ("unknown command 'fly'",)),
        (("train",), ("missing MANIFEST", "jobset.py")),
        (("train", "none.json"), ("'none.json' is no file",)),
        (("train", CONFIG), ("is no output of launch/gke/jobset.py",)),
        (("train", MANIFEST, MANIFEST), ("one MANIFEST only",)),
        (("train", MANIFEST, "--poll", "soon"), ("--poll", "'soon'")),
        (("train", MANIFEST, "--colour"), ("unknown option --colour",)),
    ],
)
def test_wrong_usage_is_one_line_and_touches_nothing(kubectl, arguments, words):
    assert_refused(kubectl.run(GKE, *arguments), *words)
    assert kubectl.calls() == []


def test_log_is_followed_through_a_restart_and_not_repeated(kubectl):
    kubectl.script("states", "Running", "Running", "Completed")
    done = kubectl.run(*TRAIN)
    assert done.returncode == 0, done.stderr
    assert verbs(kubectl) == ["apply", "logs", "logs", "logs", "delete"]
    followed = [call for call in kubectl.calls() if call[1] == "logs"]
    assert [any(word.startswith("--since-time=") for word in call) for call in followed] == [False, True, True]


def test_failure_is_reported_and_deleted(kubectl):
    kubectl.script("states", "Failed")
    done = kubectl.run(*TRAIN)
    assert done.returncode == 1
    assert "kubectl describe" in done.stderr
    assert verbs(kubectl)[-1] == "delete"


def test_keep_leaves_the_jobset(kubectl):
    kubectl.script("states", "Completed")
    assert kubectl.run(*TRAIN, "--keep").returncode == 0
    assert "delete" not in verbs(kubectl)


def test_a_cluster_out_of_reach_keeps_its_run(kubectl):
    kubectl.script("states", "BROKEN", "Running", "BROKEN")
    done = kubectl.run(*TRAIN)
    assert done.returncode == 1
    assert "goes on without this command" in done.stderr
    assert "delete" not in verbs(kubectl)


@pytest.mark.parametrize(("sent", "status", "deleted"), [(signal.SIGINT, 130, True), (signal.SIGHUP, 129, False)])
def test_interrupted_launcher_deletes_but_a_closed_terminal_does_not(kubectl, sent, status, deleted):
    kubectl.script("logs", "forever")
    launcher = kubectl.start(*TRAIN)
    deadline = time.monotonic() + PATIENCE
    while "logs" not in verbs(kubectl) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(launcher.pid, sent)
    launcher.communicate(timeout=PATIENCE)
    assert launcher.returncode == status
    assert ("delete" in verbs(kubectl)) == deleted
