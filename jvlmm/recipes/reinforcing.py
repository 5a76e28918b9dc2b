"""The reinforcement learning stage: questions with verifiable answers in, a policy that answers them better out."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import jax
from jax.sharding import Mesh

from jvlmm.config import naming_options
from jvlmm.data.batch import BatchOptions
from jvlmm.data.example import Example
from jvlmm.data.loader import PipelineOptions
from jvlmm.data.pass_rates import PassRateOptions, PassRates
from jvlmm.data.processor import Processor
from jvlmm.data.prompt_stream import PromptStream
from jvlmm.data.prompts import Style
from jvlmm.data.rejections import Rejections
from jvlmm.data.tokenizer import ChatTokenizer
from jvlmm.errors import ConfigError, DataError
from jvlmm.evaluation.evaluate import evaluate
from jvlmm.files import write_atomically
from jvlmm.json_text import json_text
from jvlmm.judges.free_text import Scorer, ScoringOptions
from jvlmm.models.config import ModelConfig
from jvlmm.models.execution import Attention, for_inference, for_training
from jvlmm.models.huggingface import load_config, load_params
from jvlmm.models.remat import Remat
from jvlmm.objectives.distillation import DistillationConfig
from jvlmm.objectives.grpo import GRPOConfig
from jvlmm.recipes.exporting import ExportType, export
from jvlmm.recipes.judging import check_judge
from jvlmm.recipes.recipe import Program, Run
from jvlmm.recipes.reinforcing_programs import policy_programs
from jvlmm.recipes.reinforcing_step import Questions, policy_step
from jvlmm.recipes.sources import Source, VisionOptions, open_sources
from jvlmm.reporting.progress import Progress
from jvlmm.reporting.writers import MetricsWriter
from jvlmm.rewards.rewarder import Rewarder, make_rewarder
from jvlmm.rewards.terms import RewardOptions
from jvlmm.rollout.answers import Answers
from jvlmm.rollout.engine import Engine, RolloutOptions
from jvlmm.rollout.features import VisualFeatures
from jvlmm.rollout.sampling import SamplingOptions
from jvlmm.sharding.batches import row_shards
from jvlmm.sharding.exchange import Exchange
from jvlmm.sharding.hosts import from_first, process_count, process_index
from jvlmm.sharding.mesh import MeshOptions, make_mesh
from jvlmm.sharding.rules import ShardingRules
from jvlmm.training.agreement import AgreedPrompts, AgreedRewards
from jvlmm.training.checkpoints import CheckpointOptions, Checkpoints
from jvlmm.training.experience import GroupOptions
from jvlmm.training.loop import FitOptions, fit
from jvlmm.training.lora import ADAPTERS, LoraOptions
from jvlmm.training.optimizer import OptimizerOptions
from jvlmm.training.policy import UpdateOptions
from jvlmm.training.policy_loss import Lesson
from jvlmm.training.policy_preparation import PolicyMeshes, PreparedPolicy, prepare_policy
from jvlmm.training.state import TrainState
from jvlmm.training.teaching import TeachingOptions

TOWER = {"vision", "merger"}


@dataclass(frozen=True)
class GRPO:
    """Learn from rewards of sampled answers, relative to others of the same question.

    The result is `models/NAME`, a folder that transformers and every later stage open. With `evaluation` sources the
    best one so far is `models/NAME-best`. Rollouts are listed in `predictions/NAME.rollouts.jsonl`. With `lora` only
    adapters are trained, as in SFT, and the model they adapt is the reference. Of several processes each reads all
    prompts, and the first one scores.
    """

    in_all_processes: ClassVar[bool] = True

    name: str = "grpo"
    model: str = ""  # a Hugging Face folder, or stage:NAME
    adapter: str = ""  # a PEFT folder, or stage:NAME, merged into the model as it is read
    sources: tuple[Source, ...] = ()
    style: Style = "think"  # of the prompts
    steps: int = 200
    prompts: int = 8  # of a step
    length_buckets: tuple[int, ...] = (1024, 2048, 4096, 8192)  # tokens of a prompt; the last is the limit
    pass_rates: PassRateOptions = field(default_factory=PassRateOptions)  # which questions are worth asking
    group: GroupOptions = field(default_factory=GroupOptions)
    objective: GRPOConfig = field(default_factory=GRPOConfig)  # see `objectives.profiles`
    rewards: RewardOptions = field(default_factory=RewardOptions)
    sampling: SamplingOptions = field(default_factory=lambda: SamplingOptions(max_tokens=1024, temperature=1.0))
    rollout: RolloutOptions = field(default_factory=RolloutOptions)
    update: UpdateOptions = field(default_factory=UpdateOptions)
    vision: VisionOptions = field(default_factory=VisionOptions)  # patch_buckets: of update.rows prompts, equal shares
    feature_bytes: int = 0  # host memory for features of media seen again; has no effect on a tower that is trained
    teaching: TeachingOptions | None = None  # by a teacher that knows more, see `training.teaching`
    optimizer: OptimizerOptions = field(default_factory=lambda: OptimizerOptions(learning_rate=1e-6))
    lora: LoraOptions | None = None  # None trains the parameters themselves
    pipeline: PipelineOptions = field(default_factory=PipelineOptions)
    mesh: MeshOptions = field(default_factory=MeshOptions)  # of the update; that of rollouts is rollout.mesh
    rules: ShardingRules = field(default_factory=ShardingRules)
    remat: Remat = "none"  # what the backward pass computes again; see `models.remat`
    attention: Attention = "auto"  # the platform's own
    evaluation: tuple[Source, ...] = ()  # asked greedily, in the same style
    scoring: ScoringOptions = field(default_factory=ScoringOptions)  # of free texts in the evaluation
    evaluate_every: int = 50
    log_every: int = 1
    checkpoint_every: int = 50
    checkpoints: CheckpointOptions = field(default_factory=CheckpointOptions)  # which of them stay
    max_nonfinite_steps: int = 3  # in a row whose update is skipped, as loss or gradients are NaN; so many end the run
    seed: int | None = None  # of prompts and rollouts; None: that of the recipe
    wandb_project: str | None = None
    export_dtype: ExportType = "bfloat16"

    def __post_init__(self) -> None:
        if self.sampling.temperature == 0:
            raise ConfigError("sampling.temperature=0: greedy rollouts are all alike; set a temperature, usually 1")
        if self.sampling.penalties or self.sampling.from_checkpoint:
            name = (*self.sampling.penalties, "from_checkpoint")[0]
            raise ConfigError(
                f"sampling.{name}={getattr(self.sampling, name)}: rollouts are drawn from the policy itself, whose "
                "log-probs the update computes again without penalties; leave penalties off and from_checkpoint=false"
            )
        if self.sampling.seed:
            raise ConfigError(
                f"sampling.seed={self.sampling.seed} has no effect on rollouts, which follow the seed of the stage; "
                "set that one, and leave it at 0"
            )
        parts = -(-self.prompts // self.update.rows)
        if parts % self.update.updates:
            raise ConfigError(
                f"update.updates={self.update.updates} does not divide the {parts} device steps that prompts="
                f"{self.prompts} make in rows of update.rows={self.update.rows}"
            )
        if any(size % self.update.rows for size in self.vision.patch_buckets):
            raise ConfigError(
                f"vision.patch_buckets={self.vision.patch_buckets} are patches of update.rows={self.update.rows} "
                "prompts, which have equal shares; use multiples of that number"
            )
        if self.teaching is not None:
            self._check_teaching(self.teaching.lesson)
        if self.feature_bytes and not self.tower_frozen:
            raise ConfigError(
                f"feature_bytes={self.feature_bytes} has no effect while the tower is trained; freeze vision and "
                "merger (optimizer.freeze), or leave it at 0"
            )

    def _check_teaching(self, lesson: Lesson) -> None:
        if self.objective.token_weight is not None:
            raise ConfigError("objective.token_weight and teaching both weigh tokens; set one of them to none")
        if self.teaching.hindsight.shuffled and self.prompts < 2:
            raise ConfigError(
                "teaching.hindsight.shuffled takes the lines of another question of the step, and prompts=1 has none; "
                "set prompts to 2 or more"
            )
        if isinstance(lesson, DistillationConfig) and self.objective.beta:
            raise ConfigError(
                "a distilled teacher takes the place of the objective: objective.beta has no effect, set it to 0"
            )
        if isinstance(lesson, DistillationConfig) and lesson.importance_cap is not None and self.group.offline:
            raise ConfigError(
                "distillation.importance_cap needs the log-probs that a rollout was drawn with, and those of "
                "group.offline have none; set one of them to none or false"
            )

    @property
    def learnt_objective(self) -> GRPOConfig:
        """The objective; one of fixed length without a length of its own has that of the longest completion sampled."""
        if self.objective.aggregation != "fixed-length" or self.objective.max_length is not None:
            return self.objective
        return replace(self.objective, max_length=self.sampling.max_tokens)

    @property
    def tower_frozen(self) -> bool:
        """Whether visual features stay what they are."""
        if self.lora is not None:
            return not any(target.startswith((*TOWER, "*")) for target in self.lora.targets)
        return TOWER.issubset(self.optimizer.freeze)

    def check(self) -> None:
        """Raises ConfigError for a file of rewards that does not compile or run, and a judge that is not there."""
        make_rewarder(self.rewards)
        if self.teaching is not None:
            check_judge(self.teaching.hindsight)

    def _check_known(self, examples: Sequence[Example]) -> None:
        """Raises DataError where the teacher knows no more than the student of any row, before a model is loaded."""
        reason = None
        for example in examples if self.teaching is not None else ():
            try:
                return self.teaching.check(example)
            except DataError as error:
                reason = error
        if reason is not None:
            paths = ", ".join(source.path for source in self.sources)
            raise DataError(
                f"{self.name}.sources ({paths}): none of {len(examples)} rows teaches anything; the last: {reason}"
            )

    def run(self, run: Run) -> dict[str, Any]:
        seed = run.seed if self.seed is None else self.seed
        first = process_index() == 0
        folder, rejected = run.resolve(self.model), Rejections(run.workdir / "rejected.jsonl" if first else None)
        rewarder, rates = make_rewarder(self.rewards), PassRates(self.pass_rates)
        examples = rates.ordered(open_sources(run, self.sources, rejected))
        self._check_known(examples)
        meshes = self.meshes(jax.devices())
        with ExitStack() as stack:
            policy = self.prepare(load_config(folder), meshes, jax.default_backend(), seed)
            processor = Processor(
                ChatTokenizer.from_pretrained(folder),
                policy.rollout_config,
                self.vision.processor(
                    self.style, self.length_buckets[-1], folder, batch=self.of_prompt, adapter=run.adapter(self.adapter)
                ),
                stack.enter_context(self.vision.decoder()),
            )
            prompts = stack.enter_context(self.stream(examples, processor, seed, rejected, rewarder, rates))
            if process_count() > 1:
                prompts = AgreedPrompts(prompts, Exchange(f"{self.name} prompts"))
                rewarder = AgreedRewards(rewarder, Exchange(f"{self.name} rewards"))
            questions = Questions(prompts, processor, rewarder, rates, seed)
            modules = None if self.lora is None else (ADAPTERS,)
            checkpoints = stack.enter_context(
                Checkpoints(run.workdir / "checkpoints" / self.name, modules=modules, **asdict(self.checkpoints))
            )
            writer = progress = None
            if first:
                writer = stack.enter_context(MetricsWriter(run.workdir, self.wandb_project))
                progress = stack.enter_context(
                    Progress(self.name, show=("reward", "response_tokens", "seconds/update"))
                )
            stack.enter_context(jax.set_mesh(meshes.training))
            params = load_params(
                folder, policy.config, policy.base(policy.training.shardings.params), run.adapter(self.adapter)
            )
            step, data = policy_step(self, run, params, policy, questions)
            create, shardings = policy.training.create, policy.training.shardings
            state = jax.jit(create, out_shardings=shardings, donate_argnums=0)(params)
            options = FitOptions(
                total_steps=self.steps,
                stage=self.name,
                log_every=self.log_every,
                checkpoint_every=self.checkpoint_every,
                max_nonfinite_steps=self.max_nonfinite_steps,
                evaluate_every=self.evaluate_every if self.evaluation else 0,
            )
            examine = None
            if self.evaluation:
                others = None if first else Path(stack.enter_context(TemporaryDirectory()))
                examine = self.examiner(run, folder, policy, processor, others or run.workdir / "predictions")
            state = fit(state, step, data, options, writer, checkpoints, examine, progress=progress)
            paths = self.export(run, self.name, folder, policy, state)
        return {**paths, "steps": self.steps, "examples": len(examples), "rejected": len(rejected)}

    def stream(
        self,
        examples: Sequence[Example],
        processor: Processor,
        seed: int,
        rejected: Rejections,
        rewarder: Rewarder,
        rates: PassRates,
    ) -> PromptStream:
        """The questions, shuffled or from easy to hard, without those that cannot be used or are not worth asking."""

        def check(example: Example) -> None:
            rewarder.check(example)
            rates.check(example)
            if self.teaching is not None:
                self.teaching.check(example)

        shapes = self.of_prompt, self.prompts, seed
        pipeline = replace(self.pipeline, shuffle=self.pipeline.shuffle and not self.pass_rates.easy_first)
        further = pipeline, self.group.offline, rates.skips
        return PromptStream(examples, processor, *shapes, rejected, check, *further)

    def programs(
        self, config: ModelConfig, devices: Sequence[jax.Device] | int, platform: str, media: bool = True
    ) -> list[Program]:
        """Of a step: the tower on a prompt's media, prompts, decoding, log-probs and update, all at their largest."""
        policy = self.prepare(config, self.meshes(devices), platform)
        return list(policy_programs(self, policy, media))

    def meshes(self, devices: Sequence[jax.Device] | int) -> PolicyMeshes:
        """How they share the update, and how the rollouts."""
        training = rollout = make_mesh(self.mesh, devices)
        if self.rollout.mesh is not None:
            with naming_options(self.rollout, "rollout"):  # an error means the axes of this mesh, not of the other
                rollout = make_mesh(self.rollout.mesh, devices)
        split = row_shards(training, self.rules)[0]
        if self.update.rows % split:
            raise ConfigError(
                f"update.rows={self.update.rows} do not divide over the {split} devices of mesh axes "
                f"{self.rules.batch}; use a multiple of {split}, or fewer devices along data and fsdp"
            )
        if training.shape["context"] > 1 or rollout.shape["context"] > 1:
            raise ConfigError(
                "mesh.context splits rows of one sequence; those of a prompt and its completions it does not: use "
                "fsdp, data or tensor"
            )
        return PolicyMeshes(training, rollout, self.rules)

    def batch(self, mesh: Mesh) -> BatchOptions:
        """The static shapes of prompts in the update."""
        return self.vision.batch(self.update.rows, self.length_buckets, *row_shards(mesh, self.rules))

    @property
    def of_prompt(self) -> BatchOptions:
        """The static shapes of one prompt."""
        sizes = tuple(size // self.update.rows for size in self.vision.patch_buckets)
        return replace(self.vision, patch_buckets=sizes).batch(1, self.length_buckets)

    def prepare(self, config: ModelConfig, meshes: PolicyMeshes, platform: str, seed: int = 0) -> PreparedPolicy:
        """The policy as it is trained and as it samples on these meshes."""
        training = for_training(config, platform, self.remat, self.attention)
        if self.lora is not None:  # frozen weights need no more digits than products take
            training = replace(training, param_dtype=training.dtype)
        rollout = replace(for_inference(config, platform), attention=training.attention)
        updates, rows = self.steps * self.update.per_step, self.update.rows
        layout = meshes, rows, platform, self.lora, self.sampling.temperature, seed
        lesson = None if self.teaching is None else self.teaching.lesson
        return prepare_policy(training, rollout, self.learnt_objective, self.optimizer, updates, *layout, lesson)

    def examiner(
        self, run: Run, folder: Path, policy: PreparedPolicy, processor: Processor, predictions: Path
    ) -> Callable[[TrainState], Mapping[str, float]]:
        """Accuracies on the evaluation sources; keeps the policy with the best one overall."""
        unusable = Rejections(None, repeated=True)
        examples = open_sources(run, self.evaluation, unusable)
        sampling = replace(self.sampling, temperature=0.0, top_k=0, top_p=1.0, min_p=0.0)
        engine, features = self.sampling_parts(policy, processor.tokenizer, sampling)
        scorer = Scorer(self.scoring)
        scorer.check()
        record = run.workdir / "models" / f"{self.name}-best.json"
        best = json.loads(record.read_text())["accuracy"] if record.is_file() else -1.0

        def examine(state: TrainState) -> Mapping[str, float]:
            nonlocal best
            answers = Answers(policy.sampler(state.params), processor, engine, features)
            path = predictions / f"{self.name}.{int(state.step):06d}.jsonl"
            protocol = "think" if self.style == "think" else "direct"
            figures = evaluate(answers, examples, path, protocol, unusable=unusable.rows, scorer=scorer)
            # A judge may say another thing to each process, and all must agree on which policy is the best.
            accuracy = from_first(f"{self.name} accuracy at {int(state.step)}", lambda: figures["accuracy"])
            if accuracy["overall"] > best:
                best = accuracy["overall"]
                self.export(run, f"{self.name}-best", folder, policy, state, donate=False)
                if process_index() == 0:
                    write_atomically(record, json_text({"accuracy": best, "step": int(state.step)}))
            return accuracy

        return examine

    def sampling_parts(
        self, policy: PreparedPolicy, tokenizer: ChatTokenizer, sampling: SamplingOptions, max_bytes: int = 0
    ) -> tuple[Engine, VisualFeatures]:
        """What samples, and what it sees, on the mesh of rollouts."""
        config, mesh = policy.rollout_config, policy.meshes.rollout
        engine = Engine(config, tokenizer, sampling, self.rollout, self.of_prompt, mesh=mesh)
        return engine, VisualFeatures(config, self.of_prompt, max_bytes, mesh)

    def export(
        self, run: Run, name: str, folder: Path, policy: PreparedPolicy, state: TrainState, donate: bool = True
    ) -> dict[str, str]:
        """Write the policy; the paths, in the run directory."""
        weights = policy.config, state.params, policy.training.shardings.params, self.lora
        adapter = run.adapter(self.adapter)
        shown = self.vision.shown(self.style, self.length_buckets[-1], folder, adapter)
        return export(run.workdir, name, folder, *weights, self.export_dtype, shown, donate, adapter)
