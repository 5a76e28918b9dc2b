"""Recipes: stages in order, resumed where they stopped, over a directory that belongs to one configuration."""

import json
import os
from pathlib import Path

import pytest

from jvlmm.errors import ConfigError, JvlmmError
from jvlmm.recipes import runner
from jvlmm.recipes.recipe import Run, load_recipe
from jvlmm.recipes.runner import run_recipe

CONFIGS = Path(__file__).parents[2] / "configs"
CONFIG = """
from dataclasses import dataclass
from pathlib import Path
from jvlmm.recipes.recipe import Recipe


@dataclass(frozen=True)
class Append:
    name: str
    text: str = "x"
    fail: str = ""

    def run(self, run):
        log = run.workdir / "log"
        log.write_text((log.read_text() if log.exists() else "") + self.name + ":" + self.text + "\\n")
        if self.fail and Path(self.fail).exists():
            raise RuntimeError("broken")
        return {"path": "log", "evaluation": {"accuracy": {"overall": 0.5}}}


def recipe():
    return Recipe(name="toy", workdir="unused", stages=(Append("one"), Append("two", fail="FLAG")))
"""


@pytest.fixture
def config(tmp_path) -> Path:
    path = tmp_path / "toy.py"
    path.write_text(CONFIG.replace("FLAG", str(tmp_path / "flag")))
    return path


def test_stages_run_in_order_with_overrides(config, tmp_path):
    result = run_recipe(config, tmp_path / "run", ("two.text=y", "seed=3"))
    assert (tmp_path / "run/log").read_text() == "one:x\ntwo:y\n"
    assert result["evaluations"]["two"]["accuracy"]["overall"] == 0.5
    assert json.loads((tmp_path / "run/manifest.json").read_text())["seed"] == 3
    assert json.loads((tmp_path / "run/config.json").read_text())["stages"][1]["text"] == "y"


def test_a_run_resumes_at_the_stage_that_failed(config, tmp_path):
    (tmp_path / "flag").touch()
    with pytest.raises(RuntimeError):
        run_recipe(config, tmp_path / "run")
    (tmp_path / "flag").unlink()
    run_recipe(config, tmp_path / "run")
    assert (tmp_path / "run/log").read_text() == "one:x\ntwo:x\ntwo:x\n"
    run_recipe(config, tmp_path / "run")
    assert (tmp_path / "run/log").read_text() == "one:x\ntwo:x\ntwo:x\n"


def test_another_configuration_is_refused_by_field(config, tmp_path):
    run_recipe(config, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"another configuration \(stages\.two\.text\)"):
        run_recipe(config, tmp_path / "run", ("two.text=z",))


def test_a_process_with_another_configuration_or_directory_is_told_so(config, tmp_path, monkeypatch):
    """What the first process of several says is played here."""
    of_first = {"config": lambda work: {**work(), "seed": 5}}
    monkeypatch.setattr(runner, "from_first", lambda name, work: of_first.get(name, lambda work: work())(work))
    with pytest.raises(ConfigError, match=r"was given another configuration than process 0 \(seed\)"):
        run_recipe(config, tmp_path / "run")
    of_first = {"directory": lambda work: None}
    with pytest.raises(ConfigError, match="process 0 writes to another directory; choose a --workdir that all"):
        run_recipe(config, tmp_path / "run")


def test_a_misspelt_option_is_refused_before_anything_is_written(config, tmp_path):
    with pytest.raises(ConfigError, match="texd"):
        run_recipe(config, tmp_path / "run", ("two.texd=z",))
    assert not (tmp_path / "run").exists()


def test_a_directory_that_cannot_be_written(config, tmp_path):
    blocker = tmp_path / "file"
    blocker.touch()
    with pytest.raises(JvlmmError, match="cannot write the run directory"):
        run_recipe(config, blocker / "run")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("x = 1", "must define recipe"),
        ("def recipe(): return 3", "returned int"),
        ("def recipe(:", "SyntaxError"),
        ("def recipe(): raise ValueError('no')", "ValueError: no"),
    ],
)
def test_a_bad_configuration_file_is_one_line(tmp_path, text, reason):
    path = tmp_path / "bad.py"
    path.write_text(text)
    with pytest.raises(ConfigError, match=reason) as error:
        load_recipe(path)
    assert "\n" not in str(error.value)


def test_a_missing_configuration_file(tmp_path):
    with pytest.raises(ConfigError, match="no such configuration file"):
        load_recipe(tmp_path / "none.py")


@pytest.mark.parametrize("name", ["recipe.yaml", "config.json", "weights.safetensors", ""])
def test_what_is_no_recipe_says_what_one_is(tmp_path, name):
    """A file of another kind is never executed."""
    if name:
        (tmp_path / name).write_text("raise SystemExit")
    with pytest.raises(ConfigError, match=r"a recipe is a Python file with a function recipe\(\)"):
        load_recipe(tmp_path / name)


def test_options_are_named_as_they_are_typed_where_a_stage_refuses_them(tmp_path):
    """The check of a run knows the option; the stage knows where it stands."""
    path = tmp_path / "late.py"
    path.write_text(
        CONFIG.replace(
            'raise RuntimeError("broken")',
            'from jvlmm.errors import ConfigError; raise ConfigError(f"text = {self.text} is no text")',
        ).replace("FLAG", str(tmp_path))
    )
    with pytest.raises(ConfigError, match=r"^two\.text = y is no text$"):
        run_recipe(path, tmp_path / "run", ("two.text=y",))


def test_references_to_stages(tmp_path):
    run = Run(tmp_path, 0, {"sft": {"path": "models/sft"}})
    assert run.resolve("stage:sft") == tmp_path / "models/sft"
    assert run.resolve("some/folder") == Path("some/folder")
    with pytest.raises(ConfigError, match="names no earlier stage"):
        run.resolve("stage:grpo")


@pytest.mark.parametrize("name", sorted(p.name for p in CONFIGS.glob("*.py")))
def test_every_shipped_configuration_loads(name):
    recipe = load_recipe(CONFIGS / name)
    assert recipe.stages and os.sep in recipe.workdir
