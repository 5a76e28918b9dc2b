"""How stages that ask questions open the model that answers them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from jvlmm.data.loader import PipelineOptions
from jvlmm.data.prompts import Style
from jvlmm.recipes.sources import VisionOptions
from jvlmm.rollout.checkpoint import load_generator
from jvlmm.rollout.control import PLAIN, Controller
from jvlmm.rollout.generator import Generator
from jvlmm.rollout.sampling import SamplingOptions


class Asking(Protocol):
    """The options of a stage that asks."""

    protocol: Style
    sampling: SamplingOptions
    batch_size: int
    length_buckets: tuple[int, ...]
    vision: VisionOptions
    pipeline: PipelineOptions


@contextmanager
def generator_of(stage: Asking, folder: Path, control: Controller = PLAIN) -> Iterator[Generator]:
    """The model of a folder, asked as the stage says; what decodes media lives as long as the context."""
    with stage.vision.decoder() as decoder:
        yield load_generator(
            folder,
            decoder,
            stage.vision.processor(stage.protocol, stage.length_buckets[-1], folder),
            stage.sampling,
            stage.vision.batch(stage.batch_size, stage.length_buckets),
            stage.pipeline,
            control,
        )
