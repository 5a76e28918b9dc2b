"""Whether the stages of a recipe fit into the memory of devices, and which overrides make them fit; by arithmetic."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import jax

from jvlmm.config import apply_overrides, naming_options
from jvlmm.errors import ConfigError
from jvlmm.recipes.planning import plan_recipe, stage_shape
from jvlmm.recipes.recipe import Program, Recipe, load_recipe
from jvlmm.recipes.reinforcing import GRPO
from jvlmm.recipes.training import SFT
from jvlmm.sharding.accelerators import accelerator_of
from jvlmm.sharding.topologies import parse_topology

_GIB = 2**30


@dataclass(frozen=True)
class Devices:
    """So many devices of one platform, each with so many bytes."""

    count: int
    platform: str  # as JAX names the back end
    capacity: float


def plan_with_remedies(
    config_path: str | Path, topology: str, overrides: tuple[str, ...] = (), media: bool = True
) -> dict[str, Any]:
    """What `plan_recipe` returns, and "fitting": {STAGE: [override, …]} for stages that do not fit as they are.

    A stage that no such change makes fit has no entry.
    """
    plan = plan_recipe(config_path, topology, overrides, media)
    recipe, slice_ = apply_overrides(load_recipe(config_path), list(overrides)), parse_topology(topology)
    devices = Devices(slice_.num_devices, slice_.platform, slice_.accelerator.memory_bytes)
    too_large = {program["name"].partition(".")[0] for program in plan["programs"] if not program["fits"]}
    found = {
        stage.name: list(fitting_overrides(recipe, stage, devices, media))
        for stage in recipe.stages
        if stage.name in too_large
    }
    return {**plan, "fitting": {name: changes for name, changes in found.items() if changes}}


def check_memory(recipe: Recipe, devices: Sequence[jax.Device]) -> None:
    """Raises ConfigError where a stage needs more memory than a device has, with overrides that make it fit.

    Only accelerators are checked: the memory of a CPU is that of the whole machine. Stages whose largest batch is not
    known (without vision.patch_buckets), or whose model is not there yet, are passed over.
    """
    capacity = _capacity(devices[0])
    if capacity is None:
        return
    here = Devices(len(devices), devices[0].platform, capacity)
    for stage in recipe.stages:
        needed = peaks(recipe, stage, here, media=True)
        worst = max(needed, key=needed.get, default=None)
        if worst is None or needed[worst] <= capacity:
            continue
        found = fitting_overrides(recipe, stage, here)
        remedy = f"add {' '.join(found)}" if found else "take more or larger devices, shorter length_buckets, or lora"
        raise ConfigError(
            f"{worst} needs about {needed[worst] / _GIB:.1f} GiB of a device that has {capacity / _GIB:.1f}, by the "
            f"arithmetic of `jvlmm plan`; {remedy}; --no-memory-check runs it all the same"
        )


def peaks(recipe: Recipe, stage: Any, devices: Devices, media: bool) -> dict[str, float]:
    """Bytes that a device needs at the peak of each program of the stage; none where they cannot be told."""
    if not hasattr(stage, "programs"):
        return {}
    try:
        with naming_options(stage, stage.name):
            shape = stage_shape(recipe, stage)
            programs: list[Program] = stage.programs(shape, devices.count, devices.platform, media)
            return {program.name: program.estimate().peak + program.resident for program in programs}
    except ConfigError:  # what does not go together is said where the stage runs
        return {}


def fitting_overrides(recipe: Recipe, stage: Any, devices: Devices, media: bool = True) -> tuple[str, ...]:
    """The least change of batches and rematerialisation with which every program of the stage fits; () for none.

    An update stays what it is: half the rows of a device step are two steps to an update.
    """
    for changes in _smaller(stage):
        overrides = tuple(f"{stage.name}.{name}={value}" for name, value in changes.items())
        try:
            changed = apply_overrides(recipe, list(overrides))
        except ConfigError:  # the stage refuses it
            continue
        needed = peaks(changed, next(each for each in changed.stages if each.name == stage.name), devices, media)
        if needed and max(needed.values()) <= devices.capacity:
            return overrides
    return ()


def _smaller(stage: Any) -> Iterator[Mapping[str, Any]]:
    """Options that need less and less memory, by their paths in the stage."""
    if isinstance(stage, SFT):
        # Activations in the host's memory cost transfers, so they come last.
        for policies in (stage.remat, "full"), ("offload",):
            for parts, remat in product(_parts(stage.batch_size), dict.fromkeys(policies)):
                rows = {"batch_size": stage.batch_size // parts, "accumulation": stage.accumulation * parts}
                kept = {} if remat == stage.remat else {"remat": remat}
                if parts > 1 or kept:
                    yield {**(rows if parts > 1 else {}), **_patches(stage, parts), **kept}
    elif isinstance(stage, GRPO):
        for parts in _parts(math.gcd(stage.update.rows, stage.rollout.rows)):
            rows = {"update.rows": stage.update.rows // parts, "rollout.rows": stage.rollout.rows // parts}
            for remat in dict.fromkeys((stage.remat, "full")):
                kept = {} if remat == stage.remat else {"remat": remat}
                if parts > 1 or kept:
                    yield {**(rows if parts > 1 else {}), **_patches(stage, parts), **kept}
    else:
        for parts in _parts(getattr(stage, "batch_size", 1)):
            if parts > 1:
                yield {"batch_size": stage.batch_size // parts, **_patches(stage, parts)}


def _parts(rows: int) -> Iterator[int]:
    """1, 2, 4, …: into how many equal parts so many rows can be cut."""
    parts = 1
    while rows % parts == 0:
        yield parts
        parts *= 2


def _patches(stage: Any, parts: int) -> dict[str, str]:
    """The patch buckets of so small a part of the rows."""
    buckets = ",".join(str(-(-bucket // parts)) for bucket in stage.vision.patch_buckets)
    return {"vision.patch_buckets": buckets} if parts > 1 and buckets else {}


def _capacity(device: jax.Device) -> float | None:
    """Bytes a program may use of it, None of a CPU and of what says nothing."""
    if device.platform == "cpu":
        return None
    told = (device.memory_stats() or {}).get("bytes_limit")
    known = accelerator_of(device.device_kind)
    return told or (known.memory_bytes if known else None)
