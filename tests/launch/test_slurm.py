"""launch/slurm_gpu.sbatch with stand-ins for srun and scontrol: what is started, and when the job is requeued."""

import re
import shlex
import time

import pytest
from launchers import CONFIG, PATIENCE, ROOT, assert_refused

SBATCH = "launch/slurm_gpu.sbatch"
RUN = (CONFIG, "--workdir", "/scratch/first", "sft.note=two words")

SRUN = """
status=$(next status)
if [[ $status == long ]]; then
    trap 'echo forwarded; sleep 0.3; exit 143' TERM
    echo ready
    while :; do sleep 0.1; done
fi
exit "$status"
"""


@pytest.fixture
def slurm(programs):
    programs.add("srun", SRUN)
    programs.add("scontrol", "")
    programs.add("jvlmm", "")
    programs.script("status", 0)
    programs.environment |= {"SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "12"}
    return programs


def directives() -> dict[str, str]:
    lines = (ROOT / SBATCH).read_text().splitlines()
    found = [re.fullmatch(r"#SBATCH --([a-z-]+)(?:=(.*))?", line) for line in lines]
    last = max(number for number, match in enumerate(found) if match)
    assert all(line.startswith("#") for line in lines[: last + 1]), "sbatch reads no directive after a command"
    return {match[1]: match[2] for match in found if match}


def test_directives_requeue_signal_and_give_every_process_one_gpu():
    options = directives()
    assert "requeue" in options
    assert re.fullmatch(r"TERM@\d+", options["signal"])  # without B: it reaches the processes, not only the shell
    assert options["ntasks-per-node"] == options["gpus-per-node"]
    assert options["open-mode"] == "append"


def test_dry_run_prints_the_command_outside_of_a_job(programs):
    done = programs.run("bash", SBATCH, "--dry-run", *RUN)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert shlex.split(line) == ["srun", "--kill-on-bad-exit=0", "--wait=600", "jvlmm", "run", *RUN]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), ("missing CONFIG", "configs/")),
        (("--dry-run",), ("missing CONFIG",)),
        (("--workdir", "/scratch"), ("missing CONFIG",)),
        (("configs/none.py", "--workdir", "/scratch"), ("'configs/none.py' is no file",)),
        ((CONFIG,), ("missing --workdir", "all nodes share")),
        ((CONFIG, "--workdir"), ("missing --workdir",)),
        (RUN, ("no SLURM job", "sbatch launch/slurm_gpu.sbatch")),
    ],
)
def test_wrong_usage_is_one_line(programs, arguments, words):
    assert_refused(programs.run("bash", SBATCH, *arguments), *words)


@pytest.mark.parametrize("status", [0, 1, 2, 137])
def test_status_is_passed_on_without_requeue(slurm, status):
    slurm.script("status", status)
    assert slurm.run("bash", SBATCH, *RUN).returncode == status
    (call,) = slurm.calls()
    assert call == ["srun", "--cpus-per-task=12", "--kill-on-bad-exit=0", "--wait=600", "jvlmm", "run", *RUN]


def test_preempted_job_is_requeued(slurm):
    slurm.script("status", 143)
    assert slurm.run("bash", SBATCH, *RUN).returncode == 143
    assert slurm.calls()[1:] == [["scontrol", "requeue", "7"]]


def test_signal_to_the_batch_shell_reaches_the_step_which_may_finish(slurm):
    slurm.script("status", "long")
    job = slurm.start("bash", SBATCH, *RUN)
    assert job.stdout.readline() == "ready\n"
    time.sleep(0.2)
    job.terminate()
    output, _ = job.communicate(timeout=PATIENCE)
    assert job.returncode == 143
    assert "forwarded" in output
    assert slurm.calls()[-1] == ["scontrol", "requeue", "7"]


def test_missing_jvlmm_is_one_line(slurm):
    (slurm.bin / "jvlmm").unlink()
    slurm.environment["PATH"] = f"{slurm.bin}:/usr/bin:/bin"
    assert_refused(slurm.run("bash", SBATCH, *RUN), "jvlmm is not on PATH", status=1)
