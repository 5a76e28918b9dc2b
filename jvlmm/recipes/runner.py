"""Run a recipe: every stage once, each result on disk before the next one starts."""

import json
import os
import platform
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from jvlmm import __version__
from jvlmm.config import apply_overrides, check_types, config_diff, naming_options, to_json
from jvlmm.errors import ConfigError, JvlmmError
from jvlmm.evaluation.results import write_results
from jvlmm.files import write_atomically
from jvlmm.json_text import json_text
from jvlmm.recipes.fitting import check_memory
from jvlmm.recipes.recipe import Recipe, Run, Stage, load_recipe
from jvlmm.recipes.resuming import changes, is_claimed
from jvlmm.recipes.run_lock import RunLock
from jvlmm.sharding.hosts import from_first, process_index
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
    last checkpoint. A directory belongs to a configuration from its first checkpoint or finished stage on, and to one
    run at a time. Returns `{"workdir", "evaluations": {STAGE: result}}`, the contract of `run --json`.
    Raises ConfigError when `workdir` holds a run of another configuration than may follow it (see `resuming`), and with
    `memory_check` where a stage needs more memory than an accelerator has.

    With several processes each runs this, on a directory they share; the first writes to it.
    """
    recipe = apply_overrides(load_recipe(config_path), list(overrides))
    for stage in recipe.stages:
        with naming_options(stage, stage.name):
            check_types(stage, stage.name)  # a file of Python may give an option anything
            getattr(stage, "check", lambda: None)()
    if memory_check:
        check_memory(recipe, jax.devices())
    folder = Path(workdir if workdir is not None else recipe.workdir).expanduser().resolve()
    agree_on_config(replace(recipe, workdir=""))
    with run_directory(folder, replace(recipe, workdir="")):
        keep_freed_memory_on_cpu()
        results: dict[str, dict[str, Any]] = {}
        for number, stage in enumerate(recipe.stages, start=1):
            run = Run(folder, recipe.seed, results)
            results[stage.name] = run_stage(stage, run, f"[{number}/{len(recipe.stages)}]")
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


@contextmanager
def run_directory(folder: Path, recipe: Recipe) -> Iterator[None]:
    """Context in which the directory is this run's; one that nothing came of is left as it was found."""
    existed = folder.is_dir()
    from_first("own directory", lambda: check_own(folder))
    with ExitStack() as stack:
        if process_index() == 0:
            try:
                (folder / "stages").mkdir(parents=True, exist_ok=True)
                stack.enter_context(RunLock(folder))
            except OSError as error:
                raise cannot_write(folder, error) from error
            stack.callback(forget_empty_run, folder, existed)
        from_first("directory", lambda: write_description(folder, recipe))
        if not (folder / "config.json").is_file():
            raise ConfigError(
                f"{folder}: process 0 writes to another directory; choose a --workdir that all processes share"
            )
        yield


def check_own(folder: Path) -> None:
    """Raise ConfigError where the directory's config.json is not a run's: that of a model, say, which is kept."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except ValueError:
        config = {}
    if config is not None and not (isinstance(config, dict) and isinstance(config.get("stages"), list)):
        raise ConfigError(f"{path}: is not the configuration of a run; choose another --workdir")


def cannot_write(folder: Path, error: OSError) -> JvlmmError:
    """The error of a directory that is not writable."""
    return JvlmmError(f"{folder}: cannot write the run directory ({error.strerror}); choose --workdir")


def write_description(folder: Path, recipe: Recipe) -> None:
    """Write config.json and manifest.json, or check that what the directory holds may go on with this configuration."""
    config, existing = to_json(recipe), folder / "config.json"
    record, session = manifest(recipe.seed), this_session()
    if existing.is_file() and is_claimed(folder):
        changed = changes(folder, json.loads(existing.read_text()), json.loads(config))
        record = read_manifest(folder) or record
        tell_differences(record, session)
        if changed:
            names = [f"{path}={new}" for path, (_, new) in changed.items()]
            print(f"resumed with {', '.join(names[:6])}{', …' if len(names) > 6 else ''}", flush=True)
            record.setdefault("changes", []).append({"time": session["time"], "options": changed})
    elif existing.is_file():  # of a run that never came to a checkpoint
        for left in (folder / name for name in ("metrics.jsonl", "rejected.jsonl", "wandb.id")):
            left.unlink(missing_ok=True)
        for best in folder.glob("models/*-best.json"):  # what was the best of another run is no mark for this one
            best.unlink()
    record.setdefault("sessions", []).append(session)
    try:
        write_atomically(folder / "manifest.json", json_text(record, indent=1))
        write_atomically(existing, config)
    except OSError as error:
        raise cannot_write(folder, error) from error


def forget_empty_run(folder: Path, existed: bool) -> None:
    """Remove what a run wrote of itself where nothing else came of it; the directory, too, unless it `existed`."""
    own = {"config.json", "manifest.json", ".lock", "metrics.jsonl"}
    files = [path for path in folder.rglob("*") if not path.is_dir()]
    foreign = any(str(path.relative_to(folder)) not in own for path in files)
    metrics = folder / "metrics.jsonl"
    if foreign or is_claimed(folder) or (metrics.is_file() and metrics.stat().st_size):
        return
    for path in folder.iterdir():
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()
    if not existed:
        folder.rmdir()


def read_manifest(folder: Path) -> dict[str, Any]:
    """That of a directory; {} where it is not there or torn."""
    try:
        return json.loads((folder / "manifest.json").read_text())
    except (OSError, ValueError):
        return {}


def tell_differences(record: dict[str, Any], session: dict[str, Any]) -> None:
    """Say on stderr what of this machine is not as it was, so that results agree to rounding only."""
    before = (record.get("sessions") or [{}])[-1]
    words = {"usable_cores": "number of usable cores", "devices": "devices", "packages": "versions of packages"}
    for name, what in words.items():
        if name in before and before[name] != session[name]:
            detail = f": {before[name]} before, {session[name]} now" if name == "usable_cores" else ""
            print(
                f"jvlmm: the {what} changed since this run was last at work{detail}; what follows equals an "
                "uninterrupted run to rounding, not to the bit",
                file=sys.stderr,
                flush=True,
            )


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
        "usable_cores": len(affinity()),
        "processes": jax.process_count(),
        "devices": [f"{device.platform}:{device.device_kind}" for device in jax.devices()],
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "seed": seed,
    }


def this_session() -> dict[str, Any]:
    """When and where a run goes on: on as many cores, devices and versions as before it repeats every bit."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "host": socket.gethostname(),
        "usable_cores": len(affinity()),
        "affinity": affinity(),
        "devices": [f"{device.platform}:{device.device_kind}" for device in jax.devices()],
        "packages": {name: metadata.version(name) for name in PACKAGES},
    }


def affinity() -> list[int]:
    """The cores that this process may use; XLA on a CPU splits its sums by their number."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
