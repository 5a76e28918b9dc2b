"""Which batch size, rematerialisation and mesh suit a topology best: the fastest by the roofline of those that fit."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, get_args, get_type_hints

import jax

from jvlmm.config import apply_overrides
from jvlmm.errors import ConfigError
from jvlmm.models.config import ModelConfig
from jvlmm.recipes.planning import counted, describe, devices_of, figures, header, stage_shape
from jvlmm.recipes.recipe import Program, Recipe, load_recipe
from jvlmm.recipes.training import SFT
from jvlmm.sharding.mesh import MESH_AXES, MeshOptions, make_mesh
from jvlmm.sharding.rules import mesh_axes
from jvlmm.sharding.topologies import Topology, parse_topology


@dataclass(frozen=True)
class SearchOptions:
    """How far a search goes."""

    compiles: int = 16  # programs of a stage, at the most; where nothing is compiled, the best that are told
    batch_sizes: tuple[int, ...] = ()  # (): a quarter to four times the recipe's, and 1, 2 and 4 rows a device

    def __post_init__(self):
        if self.compiles < 1 or any(size < 1 for size in self.batch_sizes):
            raise ConfigError(f"{self}: give positive numbers of programs to compile and of rows")


@dataclass(frozen=True)
class Candidate:
    """One way to run a stage, and what arithmetic says of it."""

    stage: SFT
    overrides: tuple[str, ...]
    predicted: dict[str, Any]  # as `planning.figures`

    @property
    def series(self) -> tuple[MeshOptions, str]:
        """What candidates share that differ in batch size alone."""
        return self.stage.mesh, self.stage.remat

    @property
    def rank(self) -> tuple[bool, float, float]:
        """Least first: those that fit, then by seconds a sample to three digits, then by memory."""
        seconds = float(f"{self.predicted['seconds_per_sample']:.3g}")
        return not self.predicted["fits"], seconds, self.predicted["peak_gib"]


def search_recipe(
    config_path: str | Path,
    topology: str,
    overrides: tuple[str, ...] = (),
    media: bool = True,
    options: SearchOptions = SearchOptions(),  # noqa: B008
) -> dict[str, Any]:
    """Try batch sizes, remat policies and meshes for every SFT stage of a recipe; patch buckets grow with the rows.

    Arithmetic orders the candidates and drops those whose arguments alone exceed the memory; the first are compiled,
    but for larger batches than one that did not fit on the same mesh with the same remat. Returns `plan_recipe`'s keys;
    "programs", best first, have "stage" and "overrides" besides, and "search" counts what was left out. Raises
    ConfigError where the recipe has no such stage, and where no candidate suits it at all.
    """
    recipe = apply_overrides(load_recipe(config_path), list(overrides))
    slice_ = parse_topology(topology)
    devices = devices_of(slice_)
    stages = [stage for stage in recipe.stages if isinstance(stage, SFT)]
    if not stages:
        raise ConfigError(
            f"{config_path}: recipe {recipe.name!r} has no SFT stage to search for; plan without --search"
        )
    searches, programs = [], []
    for stage in stages:
        found, counts = _search(recipe, stage, slice_, devices, media, options)
        searches.append({"stage": stage.name, **counts})
        programs += found
    return {**header(slice_), "programs": programs, "search": searches}


def _search(
    recipe: Recipe,
    stage: SFT,
    topology: Topology,
    devices: Sequence[jax.Device] | int,
    media: bool,
    options: SearchOptions,
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """(programs, best first; counts) of one stage."""
    config, counts = stage_shape(recipe, stage), Counter()
    candidates = list(_candidates(recipe, stage, config, topology, media, options, counts))
    results: list[tuple[Candidate, dict[str, Any]]] = []
    failed: dict[Any, int] = {}  # the smallest batch that did not fit, by series
    for candidate in sorted(candidates, key=lambda candidate: candidate.rank):
        if candidate.stage.batch_size >= failed.get(candidate.series, math.inf):
            counts["pruned"] += 1
        elif len(results) == options.compiles:
            counts["left_out"] += 1
        else:
            result = candidate.predicted
            if topology.compiles:
                result = describe(_program(candidate.stage, config, devices, topology, media), topology)
            if not result["fits"]:
                failed[candidate.series] = candidate.stage.batch_size
            results.append((candidate, result))
    results.sort(key=lambda pair: replace(pair[0], predicted=pair[1]).rank)
    told = ("candidates", "refused", "arguments_too_large", "pruned", "left_out")
    programs = [
        {**result, "stage": stage.name, "overrides": list(candidate.overrides), **_choices(candidate.stage)}
        for candidate, result in results
    ]
    return programs, {name: counts[name] for name in told}


def _candidates(
    recipe: Recipe,
    stage: SFT,
    config: ModelConfig,
    topology: Topology,
    media: bool,
    options: SearchOptions,
    counts: Counter,
) -> Iterator[Candidate]:
    """All that the recipe, the model and the topology allow and whose arguments fit."""
    capacity = topology.accelerator.memory_bytes
    sizes = options.batch_sizes or _batch_sizes(stage.batch_size, topology.num_devices)
    policies = get_args(get_type_hints(SFT)["remat"])
    problem = None
    for mesh, size, remat in product(meshes(topology.num_devices), sizes, policies):
        counts["candidates"] += 1
        overrides = _overrides(stage, config, mesh, size, remat, media)
        try:
            changed = next(s for s in apply_overrides(recipe, overrides).stages if s.name == stage.name)
            changed.batch(make_mesh(mesh, topology.num_devices))
            if media:
                _check_frames(changed, config, mesh)
            program = _program(changed, config, topology.num_devices, topology, media)
        except ConfigError as error:
            problem = problem or error
            counts["refused"] += 1
            continue
        estimate = program.estimate()
        if estimate.arguments > capacity:
            counts["arguments_too_large"] += 1
            continue
        yield Candidate(changed, tuple(overrides), figures(program, topology, counted(estimate)))
    if counts["refused"] == counts["candidates"]:
        raise ConfigError(f"stage {stage.name!r}: no mesh and batch size suit {topology.name}; the first: {problem}")


def _program(
    stage: SFT, config: ModelConfig, devices: Sequence[jax.Device] | int, topology: Topology, media: bool
) -> Program:
    return stage.programs(config, devices, topology.platform, media)[0]


def meshes(count: int) -> list[MeshOptions]:
    """All meshes of so many devices."""
    divisors = [n for n in range(1, count + 1) if count % n == 0]
    return [MeshOptions(*sizes) for sizes in product(divisors, repeat=len(MESH_AXES)) if math.prod(sizes) == count]


def _batch_sizes(rows: int, devices: int) -> list[int]:
    near = (rows * factor // 4 for factor in (1, 2, 4, 8, 16) if rows * factor % 4 == 0)
    return sorted({*near, devices, 2 * devices, 4 * devices})


def _overrides(stage: SFT, config: ModelConfig, mesh: MeshOptions, size: int, remat: str, media: bool) -> list[str]:
    """What makes the stage run so; patch buckets are rounded up to whole features on every device."""
    given = {"batch_size": size, "remat": remat, **{f"mesh.{axis}": getattr(mesh, axis) for axis in MESH_AXES}}
    if media and size != stage.batch_size:
        unit = config.vision.spatial_merge_size**2 * _split(mesh, stage.rules.media)
        buckets = [-(-bucket * size // (stage.batch_size * unit)) * unit for bucket in stage.vision.patch_buckets]
        given["vision.patch_buckets"] = ",".join(map(str, buckets))
    return [f"{stage.name}.{name}={value}" for name, value in given.items()]


def _check_frames(stage: SFT, config: ModelConfig, mesh: MeshOptions) -> None:
    """ConfigError where rows are cut so finely that a device's share of the patches holds no whole frame."""
    frame = stage.vision.frame_pixels // config.vision.patch_size**2
    share = stage.vision.patch_buckets[-1] // _split(mesh, stage.rules.media)
    if _split(mesh, stage.rules.length) > 1 and share < frame:
        raise ConfigError(
            f"a device's share of {share} patches holds no frame of {frame}; use fewer devices along context"
        )


def _split(mesh: MeshOptions, axes: tuple[str, ...]) -> int:
    return math.prod(getattr(mesh, axis) for axis in mesh_axes((axes,)))


def _choices(stage: SFT) -> dict[str, Any]:
    axes = {axis: getattr(stage.mesh, axis) for axis in MESH_AXES}
    return {"batch_size": stage.batch_size, "remat": stage.remat, "mesh": axes}
