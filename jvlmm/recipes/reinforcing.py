"""The reinforcement learning stage: questions with verifiable answers in, a policy that answers them better out."""

import json
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax

from jvlmm.data.batch import BatchOptions
from jvlmm.data.loader import PipelineOptions
from jvlmm.data.processor import Processor
from jvlmm.data.prompt_stream import PromptStream
from jvlmm.data.prompts import Style
from jvlmm.data.rejections import Rejections
from jvlmm.data.tokenizer import ChatTokenizer
from jvlmm.errors import ConfigError
from jvlmm.evaluation.evaluate import evaluate
from jvlmm.models.execution import for_training
from jvlmm.models.huggingface import load_config, load_params, save_checkpoint
from jvlmm.models.remat import Remat
from jvlmm.objectives.grpo import GRPOConfig
from jvlmm.recipes.recipe import Run
from jvlmm.recipes.sources import Source, VisionOptions, open_sources
from jvlmm.reporting.progress import Progress
from jvlmm.reporting.writers import MetricsWriter
from jvlmm.rewards.rewarder import Rewarder, make_rewarder
from jvlmm.rewards.terms import RewardOptions
from jvlmm.rollout.engine import Engine, RolloutOptions
from jvlmm.rollout.features import VisualFeatures
from jvlmm.rollout.generator import Generator
from jvlmm.rollout.sampling import SamplingOptions
from jvlmm.sharding.hosts import process_count
from jvlmm.training.advantage_estimator import AdvantageEstimator
from jvlmm.training.checkpoints import Checkpoints
from jvlmm.training.experience import Gatherer, Group, GroupOptions
from jvlmm.training.loop import FitOptions, fit
from jvlmm.training.optimizer import OptimizerOptions, make_optimizer
from jvlmm.training.policy import PolicyData, PolicyStep, UpdateOptions, make_policy_loss
from jvlmm.training.state import TrainState, create_state
from jvlmm.training.step import make_train_step

TOWER = {"vision", "merger"}


@dataclass(frozen=True)
class GRPO:
    """Learn from rewards of sampled answers, relative to others of the same question.

    The result is `models/NAME`, a folder that transformers and every later stage open. With `evaluation` sources the
    best one so far is `models/NAME-best`. Rollouts are listed in `predictions/NAME.rollouts.jsonl`.
    """

    name: str = "grpo"
    model: str = ""  # a Hugging Face folder, or stage:NAME
    sources: tuple[Source, ...] = ()
    style: Style = "think"  # of the prompts
    steps: int = 200
    prompts: int = 8  # of a step
    length_buckets: tuple[int, ...] = (1024, 2048, 4096, 8192)  # tokens of a prompt; the last is the limit
    group: GroupOptions = field(default_factory=GroupOptions)
    objective: GRPOConfig = field(default_factory=GRPOConfig)  # see `objectives.profiles`
    rewards: RewardOptions = field(default_factory=RewardOptions)
    sampling: SamplingOptions = field(default_factory=lambda: SamplingOptions(max_tokens=1024, temperature=1.0))
    rollout: RolloutOptions = field(default_factory=RolloutOptions)
    update: UpdateOptions = field(default_factory=UpdateOptions)
    vision: VisionOptions = field(default_factory=VisionOptions)
    feature_bytes: int = 0  # host memory for features of media seen again; has no effect on a tower that is trained
    optimizer: OptimizerOptions = field(default_factory=lambda: OptimizerOptions(learning_rate=1e-6))
    pipeline: PipelineOptions = field(default_factory=PipelineOptions)
    remat: Remat = "none"  # what the backward pass computes again; see `models.remat`
    evaluation: tuple[Source, ...] = ()  # asked greedily, in the same style
    evaluate_every: int = 50
    log_every: int = 1
    checkpoint_every: int = 50
    wandb_project: str | None = None
    export_dtype: Literal["float32", "bfloat16"] = "bfloat16"

    def __post_init__(self) -> None:
        if self.sampling.temperature == 0:
            raise ConfigError("sampling.temperature=0: greedy rollouts are all alike; set a temperature, usually 1")
        if self.sampling.seed:
            raise ConfigError(
                f"sampling.seed={self.sampling.seed} has no effect on rollouts, which follow the seed of the recipe; "
                "set that one, and leave it at 0"
            )
        parts = -(-self.prompts // self.update.rows)
        if parts % self.update.updates:
            raise ConfigError(
                f"update.updates={self.update.updates} does not divide the {parts} device steps that prompts="
                f"{self.prompts} make in rows of update.rows={self.update.rows}"
            )
        if self.feature_bytes and not self.tower_frozen:
            raise ConfigError(
                f"feature_bytes={self.feature_bytes} has no effect while the tower is trained; freeze vision and "
                "merger (optimizer.freeze), or leave it at 0"
            )

    @property
    def tower_frozen(self) -> bool:
        """Whether visual features stay what they are."""
        return TOWER.issubset(self.optimizer.freeze)

    def check(self) -> None:
        """Raises ConfigError for a file of rewards that does not compile or run."""
        make_rewarder(self.rewards)

    def run(self, run: Run) -> dict[str, Any]:
        if process_count() > 1:
            raise ConfigError(f"stage {self.name!r} runs in one process; start the recipe with one")
        folder, rejected = run.resolve(self.model), Rejections(run.workdir / "rejected.jsonl")
        rewarder = make_rewarder(self.rewards)
        examples = open_sources(run, self.sources, rejected)
        with ExitStack() as stack:
            processor = Processor(
                ChatTokenizer.from_pretrained(folder),
                for_training(load_config(folder), jax.default_backend(), self.remat),
                self.vision.processor(self.style, self.length_buckets[-1], folder),
                stack.enter_context(self.vision.decoder()),
            )
            stream = partial(PromptStream, examples, processor, self.batch, self.prompts)
            prompts = stack.enter_context(stream(run.seed, rejected, rewarder.check, self.pipeline))
            writer = stack.enter_context(MetricsWriter(run.workdir, self.wandb_project))
            checkpoints = stack.enter_context(Checkpoints(run.workdir / "checkpoints" / self.name))
            progress = stack.enter_context(Progress(self.name, show=("reward", "response_tokens", "seconds/update")))
            state, step, data = self.prepare(run, folder, processor, rewarder, prompts)
            options = FitOptions(
                total_steps=self.steps,
                stage=self.name,
                log_every=self.log_every,
                checkpoint_every=self.checkpoint_every,
                evaluate_every=self.evaluate_every if self.evaluation else 0,
            )
            judge = self.judge(run, folder, processor) if self.evaluation else None
            state = fit(state, step, data, options, writer, checkpoints, judge, progress=progress)
            path = f"models/{self.name}"
            self.export(run.workdir / path, folder, processor, state)
        return {"path": path, "steps": self.steps, "examples": len(examples), "rejected": len(rejected)}

    @property
    def batch(self) -> BatchOptions:
        """The static shapes of prompts in the update."""
        return self.vision.batch(self.update.rows, self.length_buckets)

    def prepare(
        self, run: Run, folder: Path, processor: Processor, rewarder: Rewarder, prompts: PromptStream
    ) -> tuple[TrainState, PolicyStep, PolicyData]:
        """The policy before its first step, and what a step does."""
        config, params = processor.config, load_params(folder, processor.config)
        updates = self.steps * self.update.per_step
        optimizer = make_optimizer(self.optimizer, updates, tuple(params))
        reference = jax.tree.map(lambda x: x.copy(), params) if self.objective.beta else None
        data = PolicyData(prompts, AdvantageEstimator(self.objective))
        gatherer = Gatherer(
            Engine(config, processor.tokenizer, self.sampling, self.rollout, self.batch),
            VisualFeatures(config, self.batch, self.feature_bytes),
            rewarder,
            self.group,
        )
        step = PolicyStep(
            config=config,
            objective=self.objective,
            update=make_train_step(make_policy_loss(config, self.objective), optimizer),
            options=self.update,
            batch=self.batch,
            gatherer=gatherer,
            estimator=data.estimator,
            more=lambda: next(prompts)[0],
            seed=run.seed,
            reference=reference,
            tower_trained=not self.tower_frozen,
            record=RolloutList(run.workdir / "predictions" / f"{self.name}.rollouts.jsonl"),
        )
        return create_state(params, optimizer), step, data

    def judge(self, run: Run, folder: Path, processor: Processor) -> Callable[[TrainState], Mapping[str, float]]:
        """Accuracies on the evaluation sources; keeps the policy with the best one overall."""
        examples = open_sources(run, self.evaluation, Rejections(None))
        sampling = SamplingOptions(max_tokens=self.sampling.max_tokens, stop=self.sampling.stop)
        best_path = run.workdir / "models" / f"{self.name}-best"

        def judge(state: TrainState) -> Mapping[str, float]:
            generator = Generator(state.params, processor, sampling, self.batch, self.pipeline)
            path = run.workdir / "predictions" / f"{self.name}.{int(state.step):06d}.jsonl"
            figures = evaluate(generator, examples, path, "think" if self.style == "think" else "direct")
            accuracy = figures["accuracy"]
            record = best_path.with_suffix(".json")
            best = json.loads(record.read_text())["accuracy"] if record.is_file() else -1.0
            if accuracy["overall"] > best:
                self.export(best_path, folder, processor, state)
                record.write_text(json.dumps({"accuracy": accuracy["overall"], "step": int(state.step)}))
            return accuracy

        return judge

    def export(self, path: Path, folder: Path, processor: Processor, state: TrainState) -> None:
        save_checkpoint(path, dict(state.params), processor.config, dtype=self.export_dtype, source_dir=folder)


class RolloutList:
    """A JSON line for every rollout, step by step. Steps that are done again after a restart replace their lines."""

    def __init__(self, path: Path):
        self._path = path
        self._begun = False

    def __call__(self, step: int, groups: tuple[Group, ...]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if not self._begun:
            self._begun = True
            self._drop_from(step)
        with self._path.open("a", encoding="utf-8") as file:
            for group in groups:
                file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in group.records(step))

    def _drop_from(self, step: int) -> None:
        if self._path.is_file():
            lines = self._path.read_text(encoding="utf-8").split("\n")[
                :-1
            ]  # of a last line torn by a kill nothing stays
            rewritten = self._path.with_suffix(".jsonl.tmp")
            rewritten.write_text(
                "".join(f"{line}\n" for line in lines if json.loads(line)["step"] < step), encoding="utf-8"
            )
            os.replace(rewritten, self._path)
