"""Recipes: stages in order, resumed where they stopped, over a directory that belongs to one configuration."""

import json
import os
from pathlib import Path

import pytest

from jvlmm.config import apply_overrides, to_json
from jvlmm.errors import ConfigError, JvlmmError
from jvlmm.recipes import run_lock, runner
from jvlmm.recipes.recipe import Recipe, Run, load_recipe
from jvlmm.recipes.reinforcing import GRPO
from jvlmm.recipes.resuming import changes
from jvlmm.recipes.run_lock import RunLock
from jvlmm.recipes.runner import run_recipe
from jvlmm.recipes.training import SFT

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
    log: str | None = "log"

    def run(self, run):
        if self.log is None:
            raise RuntimeError("broken")
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


def test_a_run_that_never_began_claims_no_directory(config, tmp_path):
    (tmp_path / "flag").touch()
    (tmp_path / "mine").mkdir()
    for folder in ("new", "mine"):
        with pytest.raises(RuntimeError):
            run_recipe(config, tmp_path / folder, (f"one.fail={tmp_path / 'flag'}", "one.log=none"))
    assert not (tmp_path / "new").exists() and list((tmp_path / "mine").iterdir()) == []


def test_until_a_stage_is_done_or_has_a_checkpoint_everything_may_change(config, tmp_path):
    (tmp_path / "flag").touch()
    with pytest.raises(RuntimeError):
        run_recipe(config, tmp_path / "run", (f"one.fail={tmp_path / 'flag'}",))
    assert (tmp_path / "run/log").exists(), "it left something, but nothing that a stage continues from"
    best = tmp_path / "run/models/one-best.json"
    best.parent.mkdir()
    best.write_text('{"accuracy": 1.0, "step": 1}')
    run_recipe(config, tmp_path / "run", ("two.text=y", "one.text=w", "seed=3", "two.fail="))
    assert json.loads((tmp_path / "run/config.json").read_text())["seed"] == 3
    assert not best.exists(), "the accuracy that another configuration came to is no mark for this one"


def test_a_stage_that_has_not_begun_may_change_which_is_recorded(config, tmp_path, capsys):
    (tmp_path / "flag").touch()
    with pytest.raises(RuntimeError):
        run_recipe(config, tmp_path / "run")
    for refused, why in (("one.text=z", "stage 'one' is done"), ("seed=1", "was done so far depends on it")):
        with pytest.raises(ConfigError, match=why):
            run_recipe(config, tmp_path / "run", (refused,))
    run_recipe(config, tmp_path / "run", ("two.text=z", "two.fail="))
    assert (tmp_path / "run/log").read_text() == "one:x\ntwo:x\ntwo:z\n"
    assert "resumed with stages.two.text=z" in capsys.readouterr().out
    manifest = json.loads((tmp_path / "run/manifest.json").read_text())
    (change,) = manifest["changes"]
    assert change["options"]["stages.two.text"] == ["x", "z"]
    assert len(manifest["sessions"]) == 2 and manifest["sessions"][0]["affinity"]


def test_a_second_run_in_a_directory_is_refused_at_once(config, tmp_path):
    (tmp_path / "run").mkdir()
    with RunLock(tmp_path / "run"), pytest.raises(JvlmmError, match=r"another run is at work there \(process \d+ on "):
        run_recipe(config, tmp_path / "run")
    run_recipe(config, tmp_path / "run")


@pytest.mark.parametrize("holder", ["beats", "is gone", "ended"])
def test_where_locks_do_not_work_a_lease_does(tmp_path, monkeypatch, holder):
    """Another machine, whose locks are not seen here."""
    monkeypatch.setattr(run_lock, "_LEASE_S", 1.5)
    monkeypatch.setattr(run_lock, "_BEAT_S", 0.2)
    monkeypatch.setattr(run_lock.fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(38, "not implemented")))
    other = RunLock(tmp_path)
    other._own = {**other._own, "machine": "another", "host": "elsewhere"}
    with other:
        if holder == "beats":
            with pytest.raises(JvlmmError, match="another run is at work there .* on elsewhere"), RunLock(tmp_path):
                pass
            return
        if holder == "is gone":
            other._stopped.set()
            other._thread.join()
            with RunLock(tmp_path):
                pass
            return
    with RunLock(tmp_path):
        pass


def test_a_run_resumed_on_another_number_of_cores_says_so(config, tmp_path, capsys, monkeypatch):
    run_recipe(config, tmp_path / "run")
    monkeypatch.setattr(runner, "affinity", lambda: list(range(77)))
    run_recipe(config, tmp_path / "run")
    line = capsys.readouterr().err
    assert "the number of usable cores changed" in line and "77 now" in line and "not to the bit" in line
    assert line.count("\n") == 1


def grpo_and_sft():
    return Recipe("toy", (SFT(name="sft"), GRPO(name="grpo")), "unused")


@pytest.mark.parametrize(
    ("override", "progress", "allowed"),
    [
        ("sft.steps=7", "begun", True),
        ("sft.steps=7", "done", False),
        ("sft.log_every=7", "done", True),
        ("sft.checkpoints.keep=7", "done", True),
        ("sft.vision.workers=7", "begun", True),
        ("sft.optimizer.learning_rate=7", "begun", True),
        ("sft.optimizer.clip_norm=7", "begun", True),
        ("sft.optimizer.clip_norm=none", "begun", False),
        ("sft.optimizer.freeze=vision", "begun", False),
        ("sft.batch_size=7", "begun", False),
        ("sft.length_buckets=7,8192", "begun", False),
        ("sft.pipeline.shuffle=false", "begun", False),
        ("sft.model=other", "new", True),
        ("grpo.update.rows=4", "begun", True),
        ("grpo.length_buckets=7,8192", "begun", True),
        ("grpo.length_buckets=7,7168", "begun", False),
        ("grpo.group.size=7", "begun", False),
    ],
)
def test_what_may_change_on_resuming(tmp_path, override, progress, allowed):
    stage, recipe = override.partition(".")[0], grpo_and_sft()
    if progress == "done":
        (tmp_path / "stages").mkdir()
        (tmp_path / f"stages/{stage}.json").write_text("{}")
    if progress == "begun":
        (tmp_path / f"checkpoints/{stage}/4").mkdir(parents=True)
    old, new = (json.loads(to_json(of)) for of in (recipe, apply_overrides(recipe, [override])))
    if allowed:
        assert changes(tmp_path, old, new)
    else:
        path = override.partition("=")[0]
        with pytest.raises(ConfigError, match=rf"stages\.{path}.*On resuming may change: steps.*or delete this one"):
            changes(tmp_path, old, new)


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


def test_a_value_of_another_type_in_a_recipe_is_refused_by_its_name(config, tmp_path):
    """A file of Python, unlike the command line, may give an option anything."""
    path = tmp_path / "strange.py"
    path.write_text(CONFIG.replace('"x"', "7").replace("FLAG", str(tmp_path)))
    with pytest.raises(ConfigError, match=r"one\.text.*7 is not text"):
        run_recipe(path, tmp_path / "run")
    assert not (tmp_path / "run").exists()


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


@pytest.mark.parametrize("text", ['{"model_type": "qwen2_5_vl"}', '{"name": "eval", "sources": []}', "[]", "{torn"])
def test_a_directory_with_the_config_of_something_else_is_left_as_it_was(config, tmp_path, text):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(text)
    (folder / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(ConfigError, match=r"model/config.json: is not the configuration of a run; .* --workdir"):
        run_recipe(config, folder)
    assert {path.name: path.read_text() for path in folder.iterdir()} == {"config.json": text, "metrics.jsonl": "{}\n"}
