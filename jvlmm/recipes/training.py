"""The supervised fine-tuning stage: a Hugging Face folder and examples in, a Hugging Face folder out."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, ClassVar

import jax
import numpy as np
from jax.sharding import Mesh

from jvlmm.data.batch import BatchOptions, abstract_batch
from jvlmm.data.loader import PipelineOptions, make_loader
from jvlmm.data.processor import Processor
from jvlmm.data.prompts import Style
from jvlmm.data.rejections import Rejections
from jvlmm.data.tokenizer import ChatTokenizer
from jvlmm.errors import ConfigError
from jvlmm.models.config import ModelConfig
from jvlmm.models.execution import Attention, for_training, on_mesh
from jvlmm.models.huggingface import load_config, load_params
from jvlmm.models.remat import Remat
from jvlmm.recipes.exporting import ExportType, export
from jvlmm.recipes.recipe import Program, Run
from jvlmm.recipes.sources import Source, VisionOptions, open_sources
from jvlmm.reporting.progress import Progress
from jvlmm.reporting.writers import MetricsWriter
from jvlmm.sharding.batches import batch_shardings, row_shards
from jvlmm.sharding.mesh import MeshOptions, make_mesh
from jvlmm.sharding.rules import ShardingRules, laid_out
from jvlmm.training.checkpoints import CheckpointOptions, Checkpoints
from jvlmm.training.estimate import update_estimate
from jvlmm.training.flops import model_flops, recomputed_flops, update_flops
from jvlmm.training.loop import FitOptions, fit
from jvlmm.training.lora import ADAPTERS, LoraOptions
from jvlmm.training.optimizer import OptimizerOptions
from jvlmm.training.placement import check_lengths, loader_share
from jvlmm.training.preparation import PreparedTraining, prepare
from jvlmm.training.profile import ProfileOptions, Profiler
from jvlmm.training.sft import make_sft_loss
from jvlmm.training.state import TrainState


@dataclass(frozen=True)
class SFT:
    """Train on the responses of examples: chains of thought with their answers, bare answers, or captions.

    The result is `models/NAME`, a folder that transformers and every later stage open. With `lora` only adapters are
    trained; they are merged into that folder, and lie alone in `adapters/NAME`, in the format of PEFT.
    """

    in_all_processes: ClassVar[bool] = True

    name: str = "sft"
    model: str = ""  # a Hugging Face folder, or stage:NAME
    adapter: str = ""  # a PEFT folder, or stage:NAME, merged into the model as it is read
    sources: tuple[Source, ...] = ()
    style: Style = "think"  # of the prompts
    steps: int = 1000  # optimiser updates
    batch_size: int = 32  # rows a device step
    accumulation: int = 1  # device steps an update
    length_buckets: tuple[int, ...] = (1024, 2048, 4096, 8192)  # tokens of a row; the last is the limit
    pack: bool = False  # fill rows up to that limit with several examples each; needs vision.patch_buckets
    vision: VisionOptions = field(default_factory=VisionOptions)
    optimizer: OptimizerOptions = field(default_factory=OptimizerOptions)
    lora: LoraOptions | None = None  # None trains the parameters themselves
    pipeline: PipelineOptions = field(default_factory=PipelineOptions)
    mesh: MeshOptions = field(default_factory=MeshOptions)
    rules: ShardingRules = field(default_factory=ShardingRules)
    remat: Remat = "none"  # what the backward pass computes again; see `models.remat`
    attention: Attention = "auto"  # the platform's own
    profile: ProfileOptions | None = None  # trace some updates into profile/NAME of the run directory
    log_every: int = 10
    checkpoint_every: int = 500
    checkpoints: CheckpointOptions = field(default_factory=CheckpointOptions)  # which of them stay
    max_nonfinite_steps: int = 3  # in a row whose update is skipped, as loss or gradients are NaN; so many end the run
    wandb_project: str | None = None
    export_dtype: ExportType = "bfloat16"

    def __post_init__(self):
        if self.profile and self.profile.last > self.steps:
            raise ConfigError(
                f"profile ends with update {self.profile.last} of a stage of {self.steps}; lower profile.start or "
                "profile.steps"
            )

    def run(self, run: Run) -> dict[str, Any]:
        folder, adapter, mesh = run.resolve(self.model), run.adapter(self.adapter), make_mesh(self.mesh)
        first = jax.process_index() == 0
        rejected_path = run.workdir / "rejected.jsonl" if first else None
        examples = open_sources(run, self.sources, Rejections(rejected_path))
        with ExitStack() as stack:
            processor = Processor(
                ChatTokenizer.from_pretrained(folder),
                self.execution(load_config(folder), mesh, jax.default_backend()),
                self.vision.processor(
                    self.style, self.length_buckets[-1], folder, batch=self.batch(mesh), adapter=adapter
                ),
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
            checkpoints = stack.enter_context(self.open_checkpoints(run))
            writer = progress = None
            if first:
                writer = stack.enter_context(MetricsWriter(run.workdir, self.wandb_project))
                progress = stack.enter_context(Progress(self.name, show=("loss", "samples_per_s", "data_wait")))
            profiler = None
            if self.profile:
                profiler = stack.enter_context(Profiler(self.profile, run.workdir / "profile" / self.name))
            stack.enter_context(jax.set_mesh(mesh))
            prepared = self.prepare(processor.config, mesh, jax.default_backend(), run.seed)
            params = load_params(folder, processor.config, prepared.shardings.params, adapter)
            state = self.fit(params, processor.config, prepared, loader, writer, checkpoints, progress, profiler)
            paths = self.export(run, folder, processor.config, state, prepared)
            rejected = len(loader.rejections)
        return {**paths, "steps": self.steps, "examples": len(examples), "rejected": rejected}

    def open_checkpoints(self, run: Run) -> Checkpoints:
        """Where its state is saved: with `lora` without the model, which does not change."""
        modules = None if self.lora is None else (ADAPTERS,)
        return Checkpoints(run.workdir / "checkpoints" / self.name, modules=modules, **asdict(self.checkpoints))

    def fit(
        self, params, config: ModelConfig, prepared: PreparedTraining, loader, writer, checkpoints, progress, profiler
    ) -> TrainState:
        """The trained state; continues from the newest checkpoint where there is one. `params` are used up."""
        state = jax.jit(prepared.create, out_shardings=prepared.shardings, donate_argnums=0)(params)
        options = FitOptions(
            total_steps=self.steps,
            stage=self.name,
            accumulation=self.accumulation,
            log_every=self.log_every,
            checkpoint_every=self.checkpoint_every,
            max_nonfinite_steps=self.max_nonfinite_steps,
        )

        def flops(batch) -> float:
            """What other processes' rows cost is taken to be what this one's do."""
            own = model_flops(config, batch, prepared.freeze, prepared.adapted)
            return own * self.batch_size / len(batch.tokens)

        rest = {"flops": flops, "progress": progress, "profiler": profiler}
        return fit(state, prepared.step, loader, options, writer, checkpoints, **rest)

    def export(
        self, run: Run, folder, config: ModelConfig, state: TrainState, prepared: PreparedTraining
    ) -> dict[str, str]:
        """Write what was trained; the paths, in the run directory. The state is used up."""
        weights, adapter = (config, state.params, prepared.shardings.params, self.lora), run.adapter(self.adapter)
        return export(
            run.workdir,
            self.name,
            folder,
            *weights,
            self.export_dtype,
            self.vision.shown(self.style, self.length_buckets[-1], folder, adapter),
            adapter=adapter,
        )

    def programs(
        self, config: ModelConfig, devices: Sequence[jax.Device] | int, platform: str, media: bool = True
    ) -> list[Program]:
        """The update on the largest batch, with media or of text alone; of a number of devices to be estimated only."""
        mesh = make_mesh(self.mesh, devices)
        config = self.execution(config, mesh, platform)
        prepared = self.prepare(config, mesh, platform)
        frame = self.vision.frame_pixels // config.vision.patch_size**2 if media else None
        batch = abstract_batch(self.batch(mesh), config, frame)
        placed = laid_out(batch, batch_shardings(batch, mesh, self.rules))
        lengths = np.full(self.batch_size, self.length_buckets[-1])
        patches = self.vision.patch_buckets[-1] if media else 0
        counted = config, lengths, patches, frame or 0, prepared.freeze, prepared.adapted

        def trace() -> jax.stages.Traced:
            with jax.set_mesh(mesh):
                return prepared.step.trace(prepared.shapes, placed)

        estimate = partial(update_estimate, prepared, config, placed, frame or 0, self.rules)
        flops = update_flops(*counted), recomputed_flops(*counted)
        return [Program(f"{self.name}.train_step", trace, estimate, mesh.size, self.batch_size, *flops)]

    def execution(self, config: ModelConfig, mesh: Mesh, platform: str) -> ModelConfig:
        """`config` as this stage runs it."""
        config = for_training(config, platform, self.remat, self.attention)
        if self.lora is not None:  # frozen weights need no more digits than products take
            config = replace(config, param_dtype=config.dtype)
        return on_mesh(config, mesh, self.rules)

    def batch(self, mesh: Mesh) -> BatchOptions:
        """The static shapes of its batches."""
        check_lengths(self.length_buckets, mesh, self.rules)
        return self.vision.batch(self.batch_size, self.length_buckets, *row_shards(mesh, self.rules), pack=self.pack)

    def prepare(self, config: ModelConfig, mesh: Mesh, platform: str, seed: int = 0) -> PreparedTraining:
        """The update on the devices of `mesh`."""
        layout = mesh, self.rules, self.batch_size, platform
        loss_fn = make_sft_loss(config)
        return prepare(config, loss_fn, self.optimizer, self.steps, *layout, lora=self.lora, seed=seed)
