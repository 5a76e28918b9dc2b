"""The command line as a user meets it: help, exit statuses, one line per error, JSON last."""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys

import pytest

from jvlmm.cli import main as cli
from jvlmm.errors import ConfigError

PATIENCE = 300  # seconds, for a loaded machine
VERBS = (
    "run",
    "eval",
    "compare",
    "generate",
    "data build",
    "data inspect",
    "data check",
    "data convert",
    "convert from-hf",
    "convert to-hf",
    "plan",
    "vreason calibrate",
    "vreason plot",
    "bench model",
    "bench grpo",
    "bench visd",
    "bench vreason",
)
ONE_PROGRAM = """
from dataclasses import dataclass

import jax

from jvlmm.recipes.recipe import Recipe


@dataclass(frozen=True)
class Add:
    name: str = "add"

    def run(self, run):
        return {"sum": float(jax.jit(lambda x: x + 1)(2.0))}


def recipe():
    return Recipe(name="one", workdir="unused", stages=(Add(),))
"""


def command(*arguments: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run([*entry(), *arguments], capture_output=True, text=True, timeout=PATIENCE, **options)


def entry() -> list[str]:
    return [sys.executable, "-c", "import sys; from jvlmm.cli.main import main; sys.exit(main())"]


@pytest.fixture
def recipe(monkeypatch, tmp_path):
    """Replace the recipe runner by a function; the verb's other code stays."""

    def replace(function):
        import jvlmm.recipes.runner

        monkeypatch.setattr(jvlmm.recipes.runner, "run_recipe", function)

    return replace


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(verb, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main([*verb.split(), "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    example = text.partition("example:\n")[2].strip()
    assert example.startswith(f"jvlmm {verb} ")
    assert "--json" in text and "--debug" in text


def test_examples_in_help_parse():
    """The example of each verb is a command line the parser takes."""
    for verb in VERBS:
        parser = cli.build_parser()
        for name in verb.split():
            parser = next(
                action.choices[name] for action in parser._actions if isinstance(action, argparse._SubParsersAction)
            )
        example = parser.epilog.partition("example:\n")[2].strip()
        assert callable(cli.parse(shlex.split(example)[1:]).run)


def test_verbs_tested_are_all_there_are():
    def names(parser):
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for name, child in action.choices.items():
                    below = list(names(child))
                    yield from (f"{name} {rest}" for rest in below) if below else [name]

    assert tuple(names(cli.build_parser())) == VERBS


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fly"],
        ["run"],
        ["run", "a.py", "--wrokdir", "x"],
        ["run", "a.py", "--work", "x"],
        ["data"],
        ["data", "build", "squares", "--out", "x"],
        ["eval", "--model", "m"],
        ["convert", "from-hf", "a", "b", "c=1"],
    ],
)
def test_wrong_usage_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2
    assert "usage: jvlmm" in capsys.readouterr().err


def test_overrides_may_stand_anywhere():
    for line in ("a.py x.y=1 z=2 --workdir d", "a.py --workdir d x.y=1 z=2", "--workdir d a.py x.y=1 --json z=2"):
        args = cli.parse(["run", *line.split()])
        assert (args.config, args.workdir, args.overrides) == ("a.py", "d", ["x.y=1", "z=2"])


def test_json_is_one_object_on_the_last_line(recipe, capsys):
    def run_recipe(config, workdir, overrides, memory_check):
        print("[1/1] sft")
        return {"workdir": workdir, "evaluations": {}, "overrides": overrides}

    recipe(run_recipe)
    assert cli.main(["run", "a.py", "--workdir", "d", "--json", "x=1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "[1/1] sft"
    assert json.loads(lines[-1]) == {"workdir": "d", "evaluations": {}, "overrides": ["x=1"]}


def test_run_prints_what_changed_and_where_everything_lies(recipe, capsys):
    def run_recipe(*_, **__):
        evaluations = {
            "before": {"accuracy": {"overall": 0.25}, "tiou": 0.1, "box_iou": None},
            "after": {"accuracy": {"overall": 0.75}, "tiou": 0.6, "box_iou": None},
        }
        return {"workdir": "runs/x", "evaluations": evaluations, "stages": {"sft": {"path": "models/sft"}, "seen": {}}}

    recipe(run_recipe)
    assert cli.main(["run", "a.py"]) == 0
    printed = capsys.readouterr().out
    assert "0.250" in printed and "0.750" in printed and "+0.500" in printed
    assert "mean tiou" in printed and "box_iou" not in printed
    assert "runs/x/models/sft" in printed


def test_an_error_for_the_user_is_one_line(recipe, capsys):
    def fail(*_, **__):
        raise ConfigError("steps=-1: must be positive;\n  set steps=10")

    recipe(fail)
    assert cli.main(["run", "a.py"]) == 1
    assert capsys.readouterr() == ("", "jvlmm: error: steps=-1: must be positive; set steps=10\n")


def test_a_file_that_cannot_be_used_is_named(recipe, capsys):
    def fail(*_, **__):
        raise PermissionError(13, "Permission denied", "/somewhere/else")

    recipe(fail)
    assert cli.main(["run", "a.py"]) == 1
    assert capsys.readouterr().err == "jvlmm: error: /somewhere/else: Permission denied\n"


def test_an_unexpected_error_is_one_line_and_names_debug(recipe, capsys):
    def fail(*_, **__):
        raise KeyError("boom")

    recipe(fail)
    assert cli.main(["run", "a.py"]) == 1
    expected = "jvlmm: error: unexpected KeyError: 'boom'; run again with --debug for the traceback\n"
    assert capsys.readouterr().err == expected
    with pytest.raises(KeyError):
        cli.main(["run", "a.py", "--debug"])


def test_interrupt_exits_with_130(recipe, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    recipe(interrupt)
    assert cli.main(["run", "a.py"]) == 130
    assert capsys.readouterr().err == "jvlmm: interrupted\n"


def test_a_closed_pipe_is_quiet():
    program = (
        "import sys, jvlmm.recipes.runner as runner, jvlmm.cli.main as cli\n"
        "runner.run_recipe = lambda *_, **__: {'workdir': 'x' * 100_000, 'evaluations': {}, 'stages': {}}\n"
        "sys.exit(cli.main(['run', 'a.py']))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(timeout=PATIENCE) == 141


def test_sigterm_closes_what_is_open_and_exits_with_143(tmp_path):
    config = tmp_path / "slow.py"
    marker = tmp_path / "closed"
    config.write_text(
        "import time\n"
        "def recipe():\n"
        "    try:\n"
        "        print('ready', flush=True)\n"
        "        time.sleep(60)\n"
        "    finally:\n"
        f"        open({str(marker)!r}, 'w').close()\n"
    )
    process = subprocess.Popen([*entry(), "run", str(config)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=PATIENCE) == 143
    assert marker.exists()


def test_compiled_programs_are_kept_for_the_next_process(tmp_path):
    path = tmp_path / "one_program.py"
    path.write_text(ONE_PROGRAM)
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    done = command("run", str(path), "--workdir", str(tmp_path / "run"), env=environment)
    assert done.returncode == 0, done.stderr
    assert any((tmp_path / "jvlmm/compilations").iterdir())


def test_help_is_fast_and_leaves_jax_alone():
    """In seconds of processor time, so that a loaded machine does not decide; alone on one it takes 0.1 s."""
    before = os.times()
    assert command("--help").returncode == 0
    after = os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    assert spent < 1.0
    check = "import sys; import jvlmm.cli.main as m; m.build_parser(); sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], timeout=PATIENCE).returncode == 0


def test_a_missing_configuration_is_one_line():
    done = command("run", "no-such-file.py")
    assert done.returncode == 1
    assert done.stderr.startswith("jvlmm: error: no-such-file.py: no such configuration file")
    assert done.stderr.count("\n") == 1
