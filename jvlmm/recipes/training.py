"""The supervised fine-tuning stage: a Hugging Face folder and examples in, a Hugging Face folder out."""

from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import jax

from jvlmm.data.loader import PipelineOptions, make_loader
from jvlmm.data.processor import Processor
from jvlmm.data.prompts import Style
from jvlmm.data.rejections import Rejections
from jvlmm.data.tokenizer import ChatTokenizer
from jvlmm.models.execution import for_training
from jvlmm.models.huggingface import load_config, load_params, save_checkpoint
from jvlmm.models.qwen2_5_vl import abstract_params
from jvlmm.recipes.recipe import Run
from jvlmm.recipes.sources import Source, VisionOptions, open_sources
from jvlmm.reporting.progress import Progress
from jvlmm.reporting.writers import MetricsWriter
from jvlmm.sharding.mesh import MeshOptions, make_mesh
from jvlmm.sharding.rules import ShardingRules, named_shardings
from jvlmm.training.checkpoints import Checkpoints
from jvlmm.training.flops import model_flops
from jvlmm.training.loop import FitOptions, fit
from jvlmm.training.optimizer import OptimizerOptions, make_optimizer
from jvlmm.training.placement import batch_placement, state_shardings
from jvlmm.training.sft import make_sft_loss
from jvlmm.training.state import TrainState, create_state
from jvlmm.training.step import make_train_step


@dataclass(frozen=True)
class SFT:
    """Train on the responses of examples: chains of thought with their answers, bare answers, or captions.

    The result is `models/NAME`, a folder that transformers and every later stage open.
    """

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
        folder = run.resolve(self.model)
        rejected_path = run.workdir / "rejected.jsonl"
        examples = open_sources(run, self.sources, Rejections(rejected_path))
        with ExitStack() as stack:
            processor = Processor(
                ChatTokenizer.from_pretrained(folder),
                for_training(load_config(folder), jax.default_backend(), self.remat),
                self.vision.processor(self.style, self.length_buckets[-1]),
                stack.enter_context(self.vision.decoder()),
            )
            loader = stack.enter_context(
                make_loader(
                    examples,
                    processor,
                    self.vision.batch(self.batch_size, self.length_buckets),
                    run.seed,
                    rejected_path=rejected_path,
                    pipeline=self.pipeline,
                )
            )
            writer = stack.enter_context(MetricsWriter(run.workdir, self.wandb_project))
            checkpoints = stack.enter_context(Checkpoints(run.workdir / "checkpoints" / self.name))
            progress = stack.enter_context(Progress(self.name, show=("loss", "samples_per_s", "data_wait")))
            state = self.fit(folder, processor, loader, writer, checkpoints, progress)
            save_checkpoint(
                run.workdir / "models" / self.name,
                state.params,
                processor.config,
                dtype=self.export_dtype,
                source_dir=folder,
            )
            rejected = len(loader.rejections.reasons)
        return {"path": f"models/{self.name}", "steps": self.steps, "examples": len(examples), "rejected": rejected}

    def fit(self, folder, processor: Processor, loader, writer, checkpoints, progress) -> TrainState:
        """The trained state; continues from the newest checkpoint where there is one."""
        config = processor.config
        mesh = make_mesh(self.mesh)
        shapes, logical = abstract_params(config)
        optimizer = make_optimizer(self.optimizer, self.steps, tuple(shapes))
        create = partial(create_state, optimizer=optimizer)
        param_shardings = named_shardings(mesh, self.rules, logical, shapes)
        shardings = state_shardings(jax.eval_shape(create, shapes), param_shardings, mesh)
        params = load_params(folder, config, param_shardings)
        state = jax.jit(create, out_shardings=shardings, donate_argnums=0)(params)
        step = make_train_step(
            make_sft_loss(config), optimizer, shardings, batch_placement(mesh, self.rules, self.batch_size)
        )
        options = FitOptions(
            total_steps=self.steps,
            stage=self.name,
            accumulation=self.accumulation,
            log_every=self.log_every,
            checkpoint_every=self.checkpoint_every,
        )
        flops = lambda batch: model_flops(config, batch, self.optimizer.freeze)  # noqa: E731
        return fit(state, step, loader, options, writer, checkpoints, flops=flops, progress=progress)
