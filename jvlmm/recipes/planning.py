"""Whether the programs of a recipe fit on a slice, and how fast they could be, before any of it is paid for."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from jvlmm.config import apply_overrides, naming_options
from jvlmm.errors import ConfigError
from jvlmm.models.config import ModelConfig
from jvlmm.models.presets import PRESETS, RELEASED
from jvlmm.recipes.recipe import Program, Recipe, load_recipe
from jvlmm.recipes.reinforcing import GRPO
from jvlmm.recipes.shapes import model_shape
from jvlmm.recipes.tower import PretrainTower
from jvlmm.recipes.training import SFT
from jvlmm.sharding.ahead_of_time import Footprint, compile_ahead
from jvlmm.sharding.estimate import Estimate
from jvlmm.sharding.topologies import Topology, parse_topology, topology_devices

_GIB = 2**30
_PARTS = ("parameters", "optimizer", "inputs", "gradients", "activations", "working", "results")


def plan_recipe(
    config_path: str | Path, topology: str, overrides: tuple[str, ...] = (), media: bool = True
) -> dict[str, Any]:
    """Compile every program of a recipe for a slice and execute none; without `media`, on batches of text alone.

    Where the compiler of the topology is not at hand, as of GPUs, programs are counted by arithmetic instead.
    Returns {"topology", "devices", "by", "programs": [{"name", "fits", "peak_gib", "capacity_gib", …}]}, the contract
    of `plan --json`; figures are of one device. Raises ConfigError where the recipe, the mesh and the slice do not go
    together.
    """
    recipe = apply_overrides(load_recipe(config_path), list(overrides))
    slice_ = parse_topology(topology)
    devices = devices_of(slice_)
    programs = [describe(program, slice_) for program in programs_of(recipe, devices, slice_.platform, media)]
    if not programs:
        raise ConfigError(f"{config_path}: no stage of recipe {recipe.name!r} has a program to plan")
    return {**header(slice_), "programs": programs}


def header(topology: Topology) -> dict[str, Any]:
    """What every plan says first."""
    by = "compilation" if topology.compiles else "arithmetic"
    return {"topology": topology.name, "devices": topology.num_devices, "by": by}


def devices_of(topology: Topology) -> list[jax.Device] | int:
    """Devices to compile for, or how many there are where there is no compiler for them."""
    return topology_devices(topology) if topology.compiles else topology.num_devices


def programs_of(
    recipe: Recipe, devices: Sequence[jax.Device] | int, platform: str, media: bool = True
) -> Iterator[Program]:
    """Programs of all stages that have some."""
    for stage in recipe.stages:
        if hasattr(stage, "programs"):
            with naming_options(stage, stage.name):
                programs = stage.programs(stage_shape(recipe, stage), devices, platform, media)
            yield from programs


def stage_shape(recipe: Recipe, stage: Any) -> ModelConfig:
    """The shape of the model a stage begins with; `stage:NAME` is that of the stage which trains it."""
    reference, stages = stage.model, {each.name: each for each in recipe.stages}
    while reference.startswith("stage:"):
        maker = stages.get(reference.removeprefix("stage:"))
        if not isinstance(maker, SFT | GRPO | PretrainTower):
            raise ConfigError(
                f"the shape of model {reference!r} is not known before that stage has run; to plan, give "
                f"{stage.name}.model={', or '.join(RELEASED)}, a preset ({', '.join(PRESETS)}) or a checkpoint folder"
            )
        reference = maker.model
    return model_shape(reference)


def describe(program: Program, topology: Topology) -> dict[str, Any]:
    """One program compiled, or counted: what a device needs, and the least time it could take."""
    if topology.compiles:
        return figures(program, topology, compile_ahead(program.trace()))
    estimate = program.estimate()
    parts = {f"{part}_gib": _gib(getattr(estimate, part), 3) for part in _PARTS}
    return {**figures(program, topology, counted(estimate)), "parts": parts}


def counted(estimate: Estimate) -> Footprint:
    """An estimate in place of what a compiler says."""
    sizes = estimate.arguments, estimate.temporaries, estimate.peak, estimate.collectives
    return Footprint(*sizes, compile_seconds=0.0, host_temporaries=estimate.host)


def figures(program: Program, topology: Topology, footprint: Footprint) -> dict[str, Any]:
    """What a plan says of one program."""
    capacity = topology.accelerator.memory_bytes
    seconds = roofline(program, topology, footprint)
    slowest = max(seconds, key=seconds.get)
    flops = program.model_flops / program.devices
    peak = footprint.peak + program.resident
    fits = footprint.complete and peak <= capacity
    return {
        "name": program.name,
        "fits": fits,
        "advice": "" if fits else advice(program, footprint, capacity),
        "devices": program.devices,
        "peak_gib": _gib(peak),
        "capacity_gib": _gib(capacity),
        "headroom_gib": _gib(capacity - peak),
        "resident_gib": _gib(program.resident),
        "arguments_gib": _gib(footprint.arguments),
        "temporaries_gib": _gib(footprint.temporaries),
        "host_gib": _gib(footprint.host_temporaries),
        "collectives_gib": {kind: _gib(size, 3) for kind, size in sorted(footprint.collectives.items())},
        "compile_s": round(footprint.compile_seconds, 1) if topology.compiles else None,
        "model_flops": program.model_flops,
        "flops_per_byte": round(flops / memory_traffic(program, footprint), 1),
        "roofline_s": round(seconds[slowest], 4),
        "roofline_by": slowest,
        "roofline_mfu": round(flops / topology.accelerator.bfloat16_flops / seconds[slowest], 3),
        "seconds_per_sample": seconds[slowest] / program.samples,
    }


def advice(program: Program, footprint: Footprint, capacity: float) -> str:
    """Which knob to turn where a program does not fit."""
    if program.devices == 1:
        knobs = "lower batch_size, length_buckets, patch_buckets or sampling.max_tokens"
        return f"it runs on one device: {knobs}, or share it out over several (mesh.tensor)"
    if footprint.arguments > capacity / 2:
        return "parameters and optimiser state take most: split them over more devices (mesh.fsdp=-1, a larger slice)"
    return "temporaries take most: lower batch_size, length_buckets or patch_buckets, or set remat='full' or 'offload'"


def memory_traffic(program: Program, footprint: Footprint) -> int:
    """Bytes a device moves at the least: arguments in every pass, temporaries written and read, results written."""
    results = footprint.peak - footprint.arguments - footprint.temporaries
    return max(1, program.passes * footprint.arguments + 2 * footprint.temporaries + results)


def roofline(program: Program, topology: Topology, footprint: Footprint) -> dict[str, float]:
    """The least seconds of each resource (Williams et al. 2009); the slowest bounds the program from below.

    Computing counts what is computed again, as a run must do it; utilisation does not.
    """
    accelerator = topology.accelerator
    flops = (program.model_flops + program.recomputed_flops) / program.devices
    return {
        "compute": flops / accelerator.bfloat16_flops,
        "memory": memory_traffic(program, footprint) / accelerator.memory_bytes_per_second,
        "interconnect": sum(footprint.collectives.values()) / accelerator.link_bytes_per_second,
    }


def _gib(size: float, digits: int = 2) -> float:
    return round(size / _GIB, digits)
