"""Writers, progress and tables as a user sees them."""

import io
import json
import sys

import pytest

from jvlmm.errors import ConfigError
from jvlmm.reporting.progress import Progress, duration
from jvlmm.reporting.tables import compare, markdown_table, text_table
from jvlmm.reporting.writers import MetricsWriter


def read_lines(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def test_truncate_drops_later_steps_of_its_stage_and_torn_lines(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        for stage in ("sft", "grpo"):
            for step in (1, 2, 3):
                writer.write({"stage": stage, "step": step, "loss": step / 10})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"stage": "grpo", "step": 4, "lo')
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write("é".encode()[:1])  # inside a character
    with MetricsWriter(tmp_path) as writer:
        writer.truncate("grpo", 1)
        writer.write({"stage": "grpo", "step": 2, "loss": 9.0})
    kept = [(line["stage"], line["step"], line["loss"]) for line in read_lines(tmp_path)]
    assert kept == [("sft", 1, 0.1), ("sft", 2, 0.2), ("sft", 3, 0.3), ("grpo", 1, 0.1), ("grpo", 2, 9.0)]


def test_unwritable_directory_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot write .*metrics.jsonl.*choose a writable run directory"):
        MetricsWriter(tmp_path / "file")


def test_missing_wandb_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"pip install 'jvlmm\[wandb\]'"):
        MetricsWriter(tmp_path, wandb_project="videos")


class Board:
    """Weights & Biases as far as it is used; `calls` is what it was told."""

    def __init__(self):
        self.calls = []

    def init(self, **options):
        self.calls.append(("init", options))
        return self

    def log(self, figures, step=None):
        self.calls.append(("log", step, figures))

    def finish(self):
        self.calls.append(("finish",))


def test_wandb_goes_on_with_its_runs_by_training_step(tmp_path, monkeypatch):
    board = Board()
    monkeypatch.setitem(sys.modules, "wandb", board)
    (tmp_path / "config.json").write_text('{"seed": 3}')
    for stages in (("sft", "sft", "grpo"), ("grpo",)):
        with MetricsWriter(tmp_path, "videos") as writer:
            for step, stage in enumerate(stages, start=1):
                writer.write({"stage": stage, "step": step, "loss": 1.0})
    first, second, third = (call[1] for call in board.calls if call[0] == "init")
    assert first["project"] == "videos" and first["resume"] == "allow" and first["config"] == {"seed": 3}
    assert first["id"] != second["id"] == third["id"], "a run for each stage, the same one after a restart"
    assert [call[1:] for call in board.calls if call[0] == "log"] == [
        (1, {"sft/loss": 1.0}),
        (2, {"sft/loss": 1.0}),
        (3, {"grpo/loss": 1.0}),
        (1, {"grpo/loss": 1.0}),
    ]
    assert sum(call[0] == "finish" for call in board.calls) == 3


def test_figures_that_are_not_finite_become_null(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write({"stage": "sft", "step": 1, "loss": float("nan"), "grad_norm": float("inf")})
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line, parse_constant=pytest.fail) | {"loss": None, "grad_norm": None} == json.loads(line)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_is_plain_lines_off_a_terminal():
    out = io.StringIO()
    with Progress("sft", every_s=3600, file=out) as progress:
        for step in range(1, 6):
            progress(step, 5, {"loss": 1 / step, "tokens_per_s": 12345.6, "grad_norm": 1.0})
    assert out.getvalue().splitlines() == [
        "sft: step 1/5  loss 1  tokens_per_s 12,346",
        "sft: step 5/5  loss 0.2  tokens_per_s 12,346",
    ]


def test_plain_lines_tell_the_time_left():
    out = io.StringIO()
    with Progress("sft", every_s=0, file=out) as progress:
        for step in (1, 2):
            progress(step, 5, {})
    assert "0:00 left" in out.getvalue().splitlines()[1]


def test_progress_is_a_bar_on_a_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    out = Terminal()
    with Progress("sft", file=out) as progress:
        progress(1, 2, {"loss": 0.5})
        progress(2, 2, {"loss": 0.25})
    assert "2/2" in out.getvalue() and "loss 0.25" in out.getvalue() and "━" in out.getvalue()


def test_duration():
    assert [duration(s) for s in (5, 123, 3723)] == ["0:05", "2:03", "1:02:03"]


def test_tables():
    header, rows = compare({"before": {"count": 0.25, "overall": 0.5}, "after": {"count": 0.75, "order": 1.0}})
    assert text_table(header, rows).splitlines() == [
        "         before  after  change",
        "-------  ------  -----  ------",
        "overall   0.500      -       -",
        "count     0.250  0.750  +0.500",
        "order         -  1.000       -",
    ]
    assert markdown_table(["a|b", "n"], [["x", 3]]) == "| a\\|b | n |\n| :-- | --: |\n| x | 3 |"
