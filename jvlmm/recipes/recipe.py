"""What a recipe is: a name, a seed, and stages that run in order over one directory."""

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import jax

from jvlmm.errors import ConfigError
from jvlmm.sharding.estimate import Estimate


class Stage(Protocol):
    """A frozen dataclass of options with a unique `name`; `run` does the work and returns a JSON-ready result.

    With several processes it runs in the first, and the others wait for its result; in each, where the class says
    `in_all_processes = True`. A method `check()`, where the class has one, raises ConfigError before any stage runs for
    what of its options can be known to be of no use.
    """

    name: str

    def run(self, run: "Run") -> dict[str, Any]: ...


@dataclass(frozen=True)
class Program:
    """What a stage compiles for its devices, for `jvlmm plan`."""

    name: str
    trace: Callable[[], jax.stages.Traced]  # on devices
    estimate: Callable[[], Estimate]  # also on a mere number of devices
    devices: int  # that execute it
    samples: int  # rows of one execution
    model_flops: float  # of one execution, over all its devices
    recomputed_flops: float = 0.0  # that it spends besides, to save memory
    passes: int = 2  # times a device reads or writes its arguments, at the least
    resident: int = 0  # bytes that a device keeps for other programs meanwhile


@dataclass(frozen=True)
class Recipe:
    """Stages in order. `workdir` is used where the command line names none."""

    name: str
    stages: tuple[Any, ...]
    workdir: str
    seed: int = 0

    def __post_init__(self):
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names):
            raise ConfigError(f"recipe {self.name!r}: stage names must differ, got {names}; rename one")


@dataclass(frozen=True)
class Run:
    """The directory a recipe runs in, and the results of the stages already done."""

    workdir: Path
    seed: int
    results: Mapping[str, dict[str, Any]] = field(default_factory=dict)

    def resolve(self, reference: str, result: str = "path") -> Path:
        """Path of a folder or file: an ordinary path, or `stage:NAME` for the `result` an earlier stage made."""
        if not reference.startswith("stage:"):
            return Path(reference).expanduser()
        name = reference.removeprefix("stage:")
        if name not in self.results:
            done = ", ".join(self.results) or "none"
            raise ConfigError(f"{reference!r} names no earlier stage; stages done so far: {done}")
        if result not in self.results[name]:
            raise ConfigError(f"{reference!r}: stage {name} left no {result}; name another stage, or a folder")
        return self.workdir / self.results[name][result]

    def adapter(self, reference: str) -> Path | None:
        """Path of the PEFT folder that a stage's option `adapter` names; None where it names none."""
        return self.resolve(reference, "adapter") if reference else None


_WHAT_A_RECIPE_IS = (
    "a recipe is a Python file with a function recipe(), such as configs/quickstart.py; single options are given "
    "behind it, as in sft.steps=100"
)


def load_recipe(path: str | Path) -> Recipe:
    """Read a configuration file: plain Python with one function `recipe()`.

    Raises ConfigError when the file is missing, does not import, or returns something else.
    """
    path = Path(path)
    if not path.is_file():
        problem = "is a folder" if path.is_dir() else "no such configuration file"
        raise ConfigError(f"{path}: {problem}; {_WHAT_A_RECIPE_IS}")
    if path.suffix != ".py":
        known = ", the options of a run as they were resolved" if path.name == "config.json" else ""
        raise ConfigError(f"{path}: is no recipe{known}; {_WHAT_A_RECIPE_IS}")
    spec = importlib.util.spec_from_file_location(f"jvlmm_config_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        recipe = module.recipe()
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    except Exception as error:
        raise ConfigError(f"{path}: {type(error).__name__}: {error}; the file must define recipe()") from error
    if not isinstance(recipe, Recipe):
        raise ConfigError(f"{path}: recipe() returned {type(recipe).__name__}, expected jvlmm.recipes.recipe.Recipe")
    return recipe
