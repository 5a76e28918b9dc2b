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
