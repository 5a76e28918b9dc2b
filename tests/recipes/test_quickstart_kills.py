"""The quickstart on a small scale, killed at any moment: weights, metrics and predictions are those of a quiet run.

JVLMM_KILLS=40 JVLMM_TERMINATIONS=20 pytest -n 0 -s tests/recipes/test_quickstart_kills.py
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from recipe_processes import write_model

ROOT = Path(__file__).parents[2]
KILLS, TERMINATIONS = (int(os.environ.get(name, 0)) for name in ("JVLMM_KILLS", "JVLMM_TERMINATIONS"))
OVERRIDES = (
    *("data.options.train_clips=24", "data.options.train_images=8", "data.options.test_clips=6"),
    *("data.options.test_images=2", "data.options.test_hard_clips=1", "data.options.test_hard_images=1"),
    *("before.batch_size=16", "after_sft.batch_size=16", "after.batch_size=16", "before.sampling.max_tokens=24"),
    *("after_sft.sampling.max_tokens=24", "after.sampling.max_tokens=24"),
    *("sft.steps=6", "sft.batch_size=4", "sft.optimizer.warmup_steps=2", "sft.checkpoint_every=2", "sft.log_every=1"),
    *("grpo.steps=3", "grpo.prompts=2", "grpo.group.size=2", "grpo.optimizer.warmup_steps=1"),
    *("grpo.rollout.rows=2", "grpo.rollout.slots=2", "grpo.update.rows=2", "grpo.checkpoint_every=1"),
    *("grpo.sampling.max_tokens=24",),
)
TIMES = ("seconds", "time", "data_wait", "per_s", "latency", "compiles", "memory", "mfu", "gib")  # of the clock


def start(workdir: Path, shared: Path) -> subprocess.Popen:
    """The small quickstart from the model of one layer in `shared`, where compiled programs are kept, too."""
    program = "import sys; from jvlmm.cli.main import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", program, "run", str(ROOT / "configs/quickstart.py"), "--workdir", str(workdir)]
    models = [f"{stage}.model={shared / 'model'}" for stage in ("before", "sft")]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_COMPILATION_CACHE_DIR": str(shared / "compiled"),
        "XLA_FLAGS": "",
    }
    return subprocess.Popen(
        [*command, *models, *OVERRIDES], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def interrupted(process: subprocess.Popen, seconds: float, number: int) -> tuple[int, str]:
    """The exit status of a run that gets a signal after so many seconds, and what it printed; 0 where it was faster."""
    try:
        told, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(number)
        told, _ = process.communicate(timeout=120)
    return process.returncode, told


def without_times(value):
    """JSON without what the clock says."""
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if not any(word in k for word in TIMES)}
    return [without_times(v) for v in value] if isinstance(value, list) else value


def outcome(workdir: Path) -> dict[str, object]:
    """Bytes of weights, and rows of metrics and predictions without times."""
    weights = {str(p.relative_to(workdir)): p.read_bytes() for p in sorted(workdir.glob("models/*/*.safetensors"))}
    rows = {
        str(path.relative_to(workdir)): [without_times(json.loads(line)) for line in path.read_text().splitlines()]
        for path in [workdir / "metrics.jsonl", *sorted(workdir.glob("predictions/*.jsonl"))]
    }
    text = json.dumps(rows).replace(str(workdir), "WORKDIR")
    assert len(weights) == 2 and len(rows) == 5, (list(weights), list(rows))
    return {**weights, **json.loads(text)}


@pytest.fixture(scope="module")
def quiet(tmp_path_factory):
    """(outcome of a run that nobody interrupts, its seconds with compiled programs at hand, what runs share)."""
    folder = tmp_path_factory.mktemp("quiet")
    write_model(folder / "model")
    for name in ("first", "second"):
        begun = time.monotonic()
        process = start(folder / name, folder)
        told, _ = process.communicate(timeout=900)
        assert process.returncode == 0, told
    assert outcome(folder / "first") == outcome(folder / "second")
    return outcome(folder / "second"), time.monotonic() - begun, folder


@pytest.mark.skipif(not KILLS, reason="takes long: JVLMM_KILLS=40 says how many kills are made")
def test_killed_runs_end_as_a_quiet_one(quiet, tmp_path):
    expected, seconds, shared = quiet
    moments, kills, runs = random.Random(0), 0, 0
    while kills < KILLS:
        workdir, status, runs = tmp_path / f"run{runs}", None, runs + 1
        while status != 0:
            patience = moments.uniform(0.1, seconds) if kills < KILLS else 900.0
            status, told = interrupted(start(workdir, shared), patience, signal.SIGKILL)
            assert status in (0, -signal.SIGKILL), told
            kills += status != 0
        found = outcome(workdir)
        assert [name for name in expected if found.get(name) != expected[name]] == []
    print(f"{kills} kills in {runs} runs of {seconds:.0f} s: bit-identical")


@pytest.mark.skipif(not TERMINATIONS, reason="takes long: JVLMM_TERMINATIONS=20 says how many runs are terminated")
def test_terminated_runs_exit_with_143(quiet, tmp_path):
    """A third of the signals come while the command starts."""
    expected, seconds, shared = quiet
    moments, waits = random.Random(1), []
    for number in range(TERMINATIONS):
        workdir = tmp_path / f"run{number % 4}"
        patience = moments.uniform(0.2, 6.0) if number % 3 == 0 else moments.uniform(6.0, 0.7 * seconds)
        process, begun = start(workdir, shared), time.monotonic()
        status, told = interrupted(process, patience, signal.SIGTERM)
        waits.append(time.monotonic() - begun - patience)
        assert status == 143 or (status == 0 and waits[-1] < 0), f"after {patience:.1f} s: {status}\n{told}"
    print(f"{TERMINATIONS} terminations: all 143, after at most {max(waits):.1f} s")
