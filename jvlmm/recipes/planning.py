"""Whether the programs of a recipe fit on a slice, and how fast they could be, before any of it is paid for."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from jvlmm.config import apply_overrides
from jvlmm.errors import ConfigError
from jvlmm.models.config import ModelConfig
from jvlmm.models.huggingface import load_config
from jvlmm.models.presets import PRESETS, RELEASED
from jvlmm.recipes.recipe import Program, Recipe, load_recipe
from jvlmm.sharding.ahead_of_time import Footprint, compile_ahead
from jvlmm.sharding.topologies import Topology, parse_topology, topology_devices

_GIB = 2**30


def plan_recipe(
    config_path: str | Path, topology: str, overrides: tuple[str, ...] = (), media: bool = True
) -> dict[str, Any]:
    """Compile every program of a recipe for a slice and execute none; without `media`, on batches of text alone.

    Returns {"topology", "programs": [{"name", "fits", "peak_gib", "capacity_gib", …}]}, the contract of `plan --json`;
    figures are of one device. Raises ConfigError where the recipe, the mesh and the slice do not go together.
    """
    recipe = apply_overrides(load_recipe(config_path), list(overrides))
    slice_ = parse_topology(topology)
    devices = topology_devices(slice_)
    programs = [describe(program, slice_) for program in programs_of(recipe, devices, media)]
    if not programs:
        raise ConfigError(f"{config_path}: no stage of recipe {recipe.name!r} has a program to plan")
    return {"topology": topology, "devices": len(devices), "programs": programs}


def programs_of(recipe: Recipe, devices: list[jax.Device], media: bool = True) -> Iterator[Program]:
    """Programs of all stages that have some."""
    for stage in recipe.stages:
        if hasattr(stage, "programs"):
            yield from stage.programs(model_shape(stage.model), devices, "tpu", media)


def model_shape(folder: str) -> ModelConfig:
    """The shape of a checkpoint folder, or of a released checkpoint or preset of that name where no folder is here."""
    path = Path(folder).expanduser()
    if (path / "config.json").is_file():
        return load_config(path)
    preset = RELEASED.get(path.name, path.name)
    if preset not in PRESETS:
        raise ConfigError(
            f"model {folder!r} is no checkpoint folder; to plan without one, name {', '.join(RELEASED)}, "
            f"or a preset: {', '.join(PRESETS)}"
        )
    return PRESETS[preset]


def describe(program: Program, topology: Topology) -> dict[str, Any]:
    """One program compiled: what a device needs, and the least time it could take."""
    footprint = compile_ahead(program.trace())
    accelerator = topology.accelerator
    flops = program.model_flops / topology.num_devices
    seconds = roofline(footprint, topology, flops)
    slowest = max(seconds, key=seconds.get)
    fits = footprint.complete and footprint.peak <= accelerator.memory_bytes
    return {
        "name": program.name,
        "fits": fits,
        "advice": "" if fits else advice(footprint, accelerator.memory_bytes),
        "peak_gib": round(footprint.peak / _GIB, 2),
        "capacity_gib": round(accelerator.memory_bytes / _GIB, 2),
        "headroom_gib": round((accelerator.memory_bytes - footprint.peak) / _GIB, 2),
        "arguments_gib": round(footprint.arguments / _GIB, 2),
        "temporaries_gib": round(footprint.temporaries / _GIB, 2),
        "host_gib": round(footprint.host_temporaries / _GIB, 2),
        "collectives_gib": {kind: round(size / _GIB, 3) for kind, size in sorted(footprint.collectives.items())},
        "compile_s": round(footprint.compile_seconds, 1),
        "model_flops": program.model_flops,
        "flops_per_byte": round(flops / memory_traffic(footprint), 1),
        "roofline_s": round(seconds[slowest], 4),
        "roofline_by": slowest,
        "roofline_mfu": round(seconds["compute"] / seconds[slowest], 3),
    }


def advice(footprint: Footprint, capacity: float) -> str:
    """Which knob to turn where a program does not fit."""
    if footprint.arguments > capacity / 2:
        return "parameters and optimiser state take most: split them over more devices (mesh.fsdp=-1, a larger slice)"
    return "temporaries take most: lower batch_size, length_buckets or patch_buckets, or set remat='full' or 'offload'"


def memory_traffic(footprint: Footprint) -> int:
    """Bytes a device moves at the least: arguments read and, where donated, written; temporaries written and read."""
    return max(1, 2 * (footprint.arguments + footprint.temporaries))


def roofline(footprint: Footprint, topology: Topology, flops: float) -> dict[str, float]:
    """The least seconds of each resource (Williams et al. 2009); the slowest bounds the program from below."""
    accelerator = topology.accelerator
    return {
        "compute": flops / accelerator.bfloat16_flops,
        "memory": memory_traffic(footprint) / accelerator.memory_bytes_per_second,
        "interconnect": sum(footprint.collectives.values()) / accelerator.link_bytes_per_second,
    }
