"""How stages that ask questions open the model that answers them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import jax
from jax.sharding import AbstractMesh, Mesh

from jvlmm.data.batch import BatchOptions
from jvlmm.data.loader import PipelineOptions
from jvlmm.data.prompts import Style
from jvlmm.errors import ConfigError
from jvlmm.recipes.sources import VisionOptions
from jvlmm.rollout.checkpoint import load_generator
from jvlmm.rollout.control import PLAIN, Controller
from jvlmm.rollout.generator import Generator
from jvlmm.rollout.sampling import SamplingOptions
from jvlmm.sharding.batches import row_shards
from jvlmm.sharding.mesh import MeshOptions, make_mesh
from jvlmm.sharding.rules import ShardingRules


class Asking(Protocol):
    """The options of a stage that asks."""

    protocol: Style
    sampling: SamplingOptions
    batch_size: int
    length_buckets: tuple[int, ...]
    vision: VisionOptions
    pipeline: PipelineOptions
    mesh: MeshOptions | None
    rules: ShardingRules


@contextmanager
def generator_of(
    stage: Asking, folder: Path, control: Controller = PLAIN, adapter: Path | None = None
) -> Iterator[Generator]:
    """The model of a folder with an adapter merged into it, asked as the stage says.

    What decodes media lives as long as the context.
    """
    mesh = mesh_of(stage, jax.local_devices())
    with stage.vision.decoder() as decoder:
        yield load_generator(
            folder,
            decoder,
            stage.vision.processor(
                stage.protocol, stage.length_buckets[-1], folder, batch=batch_of(stage, mesh), adapter=adapter
            ),
            stage.sampling,
            batch_of(stage, mesh),
            stage.pipeline,
            control,
            mesh,
            stage.rules,
            adapter,
        )


def mesh_of(stage: Asking, devices: Sequence[jax.Device] | int) -> Mesh | AbstractMesh:
    """What answers, of these devices or of so many: all of them as the stage says, or the first one."""
    if stage.mesh is None:
        return make_mesh(MeshOptions(), 1 if isinstance(devices, int) else devices[:1])
    mesh = make_mesh(stage.mesh, devices)
    if mesh.shape["context"] > 1:
        raise ConfigError("mesh.context splits rows, which are decoded whole: use tensor, data or fsdp to answer")
    return mesh


def batch_of(stage: Asking, mesh: Mesh | AbstractMesh) -> BatchOptions:
    """The static shapes of batches of questions."""
    return stage.vision.batch(stage.batch_size, stage.length_buckets, *row_shards(mesh, stage.rules))
