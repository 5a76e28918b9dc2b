"""The supervised fine-tuning stage: a Hugging Face folder and examples in, a Hugging Face folder out."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import jax
import numpy as np
from jax.sharding import Mesh

from jvlmm.data.batch import BatchOptions, abstract_batch
from jvlmm.data.loader import PipelineOptions, make_loader
from jvlmm.data.processor import Processor
from jvlmm.data.prompts import Style
from jvlmm.data.rejections import Rejections
from jvlmm.data.tokenizer import ChatTokenizer
from jvlmm.models.config import ModelConfig
from jvlmm.models.execution import for_training
from jvlmm.models.huggingface import load_config, load_params, save_checkpoint
from jvlmm.recipes.recipe import Program, Run
from jvlmm.recipes.sources import Source, VisionOptions, open_sources
from jvlmm.reporting.progress import Progress
from jvlmm.reporting.writers import MetricsWriter
from jvlmm.sharding.mesh import MeshOptions, make_mesh
from jvlmm.sharding.rules import ShardingRules
from jvlmm.training.checkpoints import Checkpoints
from jvlmm.training.flops import model_flops, update_flops
from jvlmm.training.loop import FitOptions, fit
from jvlmm.training.optimizer import OptimizerOptions
from jvlmm.training.placement import batch_shardings, loader_share, row_shards
from jvlmm.training.preparation import PreparedTraining, prepare_sft
from jvlmm.training.state import TrainState


@dataclass(frozen=True)
class SFT:
    """Train on the responses of examples: chains of thought with their answers, bare answers, or captions.

    The result is `models/NAME`, a folder that transformers and every later stage open.
    """

    in_all_processes: ClassVar[bool] = True

    name: str = "sft"
    model: str = ""  # a Hugging Face folder, or stage:NAME
    sources: tuple[Source, ...] = ()
    style: Style = "think"  # of the prompts
    steps: int = 1000  # optimiser updates
    batch_size: int = 32  # rows a device step
    accumulation: int = 1  # device steps an update
    length_buckets: tuple[int, ...] = (1024, 2048, 4096, 8192)  # tokens of a row; the last is the limit
    vision: VisionOptions = field(default_factory=VisionOptions)
    optimizer: OptimizerOptions = field(default_factory=OptimizerOptions)
    pipeline: PipelineOptions = field(default_factory=PipelineOptions)
    mesh: MeshOptions = field(default_factory=MeshOptions)
    rules: ShardingRules = field(default_factory=ShardingRules)
    remat: Literal["none", "dots", "full"] = "none"
    log_every: int = 10
    checkpoint_every: int = 500
    wandb_project: str | None = None
    export_dtype: Literal["float32", "bfloat16"] = "bfloat16"

    def run(self, run: Run) -> dict[str, Any]:
        folder, mesh = run.resolve(self.model), make_mesh(self.mesh)
        first = jax.process_index() == 0
        rejected_path = run.workdir / "rejected.jsonl" if first else None
        examples = open_sources(run, self.sources, Rejections(rejected_path))
        with ExitStack() as stack:
            processor = Processor(
                ChatTokenizer.from_pretrained(folder),
                self.execution(load_config(folder), mesh, jax.default_backend()),
                self.vision.processor(self.style, self.length_buckets[-1]),
                stack.enter_context(self.vision.decoder()),
            )
            loader = stack.enter_context(
                make_loader(
                    examples,
                    processor,
                    self.batch(mesh),
                    run.seed,
                    rejected_path=rejected_path,
                    pipeline=self.pipeline,
                    share=loader_share(self.name, mesh, self.rules),
                )
            )
            checkpoints = stack.enter_context(Checkpoints(run.workdir / "checkpoints" / self.name))
            writer = progress = None
            if first:
                writer = stack.enter_context(MetricsWriter(run.workdir, self.wandb_project))
                progress = stack.enter_context(Progress(self.name, show=("loss", "samples_per_s", "data_wait")))
            stack.enter_context(jax.set_mesh(mesh))
            state = self.fit(folder, mesh, processor.config, loader, writer, checkpoints, progress)
            save_checkpoint(
                run.workdir / "models" / self.name,
                state.params,
                processor.config,
                dtype=self.export_dtype,
                source_dir=folder,
            )
            rejected = len(loader.rejections.reasons)
        return {"path": f"models/{self.name}", "steps": self.steps, "examples": len(examples), "rejected": rejected}

    def fit(self, folder, mesh: Mesh, config: ModelConfig, loader, writer, checkpoints, progress) -> TrainState:
        """The trained state; continues from the newest checkpoint where there is one."""
        prepared = self.prepare(config, mesh, jax.default_backend())
        params = load_params(folder, config, prepared.shardings.params)
        state = jax.jit(prepared.create, out_shardings=prepared.shardings, donate_argnums=0)(params)
        options = FitOptions(
            total_steps=self.steps,
            stage=self.name,
            accumulation=self.accumulation,
            log_every=self.log_every,
            checkpoint_every=self.checkpoint_every,
        )
        # What other processes' rows cost is taken to be what this one's do.
        flops = lambda batch: model_flops(config, batch, self.optimizer.freeze) * self.batch_size / len(batch.tokens)  # noqa: E731
        return fit(state, prepared.step, loader, options, writer, checkpoints, flops=flops, progress=progress)

    def programs(self, config: ModelConfig, devices: Sequence[jax.Device], platform: str) -> list[Program]:
        """The update on the largest batch."""
        mesh = make_mesh(self.mesh, devices)
        config = self.execution(config, mesh, platform)
        prepared = self.prepare(config, mesh, platform)
        frame = self.vision.pixels.video_max_pixels // config.vision.patch_size**2
        batch = abstract_batch(self.batch(mesh), config, frame)
        place = lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)  # noqa: E731
        placed = jax.tree.map(place, batch, batch_shardings(batch, mesh, self.rules))
        lengths = np.full(self.batch_size, self.length_buckets[-1])
        flops = update_flops(config, lengths, self.vision.patch_buckets[-1], frame, self.optimizer.freeze)

        def trace() -> jax.stages.Traced:
            with jax.set_mesh(mesh):
                return prepared.step.trace(prepared.shapes, placed)

        return [Program(f"{self.name}.train_step", trace, flops)]

    def execution(self, config: ModelConfig, mesh: Mesh, platform: str) -> ModelConfig:
        """`config` as this stage runs it."""
        config = for_training(config, platform, self.remat)
        return replace(config, rules=self.rules) if mesh.size > 1 else config

    def batch(self, mesh: Mesh) -> BatchOptions:
        """The static shapes of its batches."""
        return self.vision.batch(self.batch_size, self.length_buckets, *row_shards(mesh, self.rules))

    def prepare(self, config: ModelConfig, mesh: Mesh, platform: str) -> PreparedTraining:
        """The update on the devices of `mesh`."""
        return prepare_sft(config, self.optimizer, self.steps, mesh, self.rules, self.batch_size, platform)
