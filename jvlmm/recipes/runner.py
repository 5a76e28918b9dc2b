"""Run a recipe: every stage once, each result on disk before the next one starts."""

import json
import os
import platform
import time
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from jvlmm import __version__
from jvlmm.config import apply_overrides, config_diff, naming_options, to_json
from jvlmm.errors import ConfigError, JvlmmError
from jvlmm.evaluation.results import write_results
from jvlmm.json_text import json_text
from jvlmm.recipes.fitting import check_memory
from jvlmm.recipes.recipe import Recipe, Run, Stage, load_recipe
from jvlmm.sharding.hosts import from_first
from jvlmm.training.host_memory import keep_freed_memory_on_cpu

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "grain", "numpy", "av")


def run_recipe(
    config_path: str | Path,
    workdir: str | Path | None = None,
    overrides: tuple[str, ...] = (),
    memory_check: bool = True,
) -> dict[str, Any]:
    """Run or resume the recipe of a configuration file.

    Stages already finished in `workdir` are not run again; the one that was interrupted continues from its
    last checkpoint. Returns `{"workdir", "evaluations": {STAGE: result}}`, the contract of `run --json`.
    Raises ConfigError when `workdir` holds a run of another configuration, and with `memory_check` where a stage needs
    more memory than an accelerator has.

    With several processes each runs this, on a directory they share; the first writes to it.
    """
    recipe = apply_overrides(load_recipe(config_path), list(overrides))
    for stage in recipe.stages:
        with naming_options(stage, stage.name):
            getattr(stage, "check", lambda: None)()
    if memory_check:
        check_memory(recipe, jax.devices())
    folder = Path(workdir if workdir is not None else recipe.workdir).expanduser().resolve()
    agree_on_config(replace(recipe, workdir=""))
    from_first("directory", lambda: claim_directory(folder, replace(recipe, workdir="")))
    if not (folder / "config.json").is_file():
        raise ConfigError(
            f"{folder}: process 0 writes to another directory; choose a --workdir that all processes share"
        )
    keep_freed_memory_on_cpu()
    results: dict[str, dict[str, Any]] = {}
    for number, stage in enumerate(recipe.stages, start=1):
        results[stage.name] = run_stage(stage, Run(folder, recipe.seed, results), f"[{number}/{len(recipe.stages)}]")
    evaluations = {name: result["evaluation"] for name, result in results.items() if "evaluation" in result}
    if jax.process_index() == 0:
        write_results(folder, evaluations)
    return {"workdir": str(folder), "evaluations": evaluations, "stages": results}


def run_stage(stage: Stage, run: Run, label: str) -> dict[str, Any]:
    """The result of a stage, from its file where it was done before; it is there when this returns."""
    path, first, start = run.workdir / "stages" / f"{stage.name}.json", jax.process_index() == 0, time.time()
    done = from_first(f"{stage.name} done", lambda: json.loads(path.read_text()) if path.is_file() else None)
    if first:
        print(f"{label} {stage.name}" + (": done before" if done else ""), flush=True)
    if done:
        return done
    with naming_options(stage, stage.name):
        if getattr(stage, "in_all_processes", False):
            result = stage.run(run)
        else:
            result = from_first(f"{stage.name} result", lambda: stage.run(run))
    result = {**result, "seconds": round(time.time() - start, 1)}
    if first:
        write_atomically(path, json_text(result, indent=1))
    return result


def agree_on_config(recipe: Recipe) -> None:
    """Raise ConfigError in a process that was given another configuration than the first."""
    config = json.loads(to_json(recipe))
    of_first = from_first("config", lambda: config)
    if of_first != config:
        raise ConfigError(
            f"process {jax.process_index()} was given another configuration than process 0 "
            f"({differing_fields(json.dumps(of_first), json.dumps(config))}); start all with the same command"
        )


def claim_directory(folder: Path, recipe: Recipe) -> None:
    """Create the run directory, or check that it belongs to the same configuration."""
    config, existing = to_json(recipe), folder / "config.json"
    if existing.is_file() and existing.read_text() != config:
        raise ConfigError(
            f"{folder}: holds a run of another configuration ({differing_fields(existing.read_text(), config)}); "
            "choose another --workdir, or delete this one"
        )
    try:
        (folder / "stages").mkdir(parents=True, exist_ok=True)
        probe = folder / "stages" / ".writable"
        probe.touch()
        probe.unlink()
        if not existing.is_file():
            write_atomically(folder / "manifest.json", json_text(manifest(recipe.seed), indent=1))
            write_atomically(existing, config)
    except OSError as error:
        raise JvlmmError(f"{folder}: cannot write the run directory ({error.strerror}); choose --workdir") from error


def differing_fields(old: str, new: str) -> str:
    """Dotted names of the first few fields in which two configurations, as JSON, differ."""
    names = sorted(config_diff(json.loads(old), json.loads(new)))
    return ", ".join(names[:4]) + (", …" if len(names) > 4 else "")


def manifest(seed: int) -> dict[str, Any]:
    """Versions, platform and devices: what a result needs beside its configuration to be repeated."""
    return {
        "jvlmm": __version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "processes": jax.process_count(),
        "devices": [f"{device.platform}:{device.device_kind}" for device in jax.devices()],
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "seed": seed,
    }


def write_atomically(path: Path, text: str) -> None:
    """Write text so that a reader sees the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".partial")
    temporary.write_text(text)
    os.replace(temporary, path)
