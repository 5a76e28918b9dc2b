"""What a GRPO stage does at every step, put together of its options."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jvlmm.data.pass_rates import PassRates
from jvlmm.data.processor import Processor
from jvlmm.data.prompt_stream import PromptStream
from jvlmm.data.tokenizer import ChatTokenizer
from jvlmm.errors import ConfigError
from jvlmm.models.config import ModelConfig
from jvlmm.models.huggingface import load_config, load_params
from jvlmm.recipes.judging import judge_maker
from jvlmm.recipes.recipe import Run
from jvlmm.recipes.record_list import RecordList
from jvlmm.rewards.rewarder import Rewarder
from jvlmm.sharding.hosts import process_index
from jvlmm.training.advantage_estimator import AdvantageEstimator
from jvlmm.training.agreement import AgreedPrompts, AgreedRewards
from jvlmm.training.experience import Gatherer, Group
from jvlmm.training.hindsight_writing import HindsightWriter
from jvlmm.training.policy import PolicyData, PolicyStep
from jvlmm.training.policy_preparation import PreparedPolicy, other_model
from jvlmm.training.teaching import Teaching

if TYPE_CHECKING:
    from jvlmm.recipes.reinforcing import GRPO


@dataclass(frozen=True)
class Questions:
    """What a stage asks, and what scores the answers."""

    prompts: PromptStream | AgreedPrompts
    processor: Processor
    rewarder: Rewarder | AgreedRewards
    rates: PassRates
    seed: int


def policy_step(
    stage: "GRPO", run: Run, params: Mapping[str, Any], policy: PreparedPolicy, questions: Questions
) -> tuple[PolicyStep, PolicyData]:
    """The step and its data, for a run that begins with `params`."""
    reference = None
    if stage.objective.beta and stage.lora is not None:
        reference = policy.base
    elif stage.objective.beta:
        kept = jax.tree.map(jnp.copy, params)
        reference = lambda _: kept  # noqa: E731
    data = PolicyData(questions.prompts, AdvantageEstimator(stage.objective), questions.rates)
    parts = stage.sampling_parts(policy, questions.processor.tokenizer, stage.sampling, stage.feature_bytes)
    gatherer = Gatherer(*parts, questions.rewarder, stage.group)
    rollouts = RecordList(run.workdir / "predictions" / f"{stage.name}.rollouts.jsonl")

    def record(number: int, groups: Sequence[Group]) -> None:
        # a question whose rewards failed has not shown whether it is too easy or too hard: it does not rest
        questions.rates.observe((group.prompt.example.id, group.informative) for group in groups if group.compared)
        if process_index() == 0:
            rollouts(number, (record for group in groups for record in group.records(number)))

    step = PolicyStep(
        config=policy.config,
        objective=stage.objective,
        update=policy.training.step,
        options=stage.update,
        batch=stage.batch(policy.meshes.training),
        gatherer=gatherer,
        estimator=data.estimator,
        more=lambda: next(questions.prompts)[0],
        seed=questions.seed,
        steps=stage.steps,
        sampler=policy.sampler,
        policy=policy.policy,
        reference=reference,
        place=policy.place,
        tower_trained=not stage.tower_frozen,
        record=record,
        teaching=None if stage.teaching is None else _teaching(stage, run, policy, questions),
    )
    return step, data


def _teaching(stage: "GRPO", run: Run, policy: PreparedPolicy, questions: Questions) -> Teaching:
    judge = judge_maker(stage, policy, questions.processor)
    weights = RecordList(run.workdir / "predictions" / f"{stage.name}.weights.jsonl")
    hindsight = HindsightWriter(
        options=stage.teaching.hindsight,
        tokenizer=questions.processor.tokenizer,
        judge=judge,
        header=not stage.teaching.model,
        seed=questions.seed,
    )
    other = _other(run.resolve(stage.teaching.model), policy, questions) if stage.teaching.model else None
    return Teaching(
        options=stage.teaching,
        config=policy.config,
        batch=stage.batch(policy.meshes.training),
        hindsight=hindsight,
        temperature=stage.sampling.temperature,
        trained=policy.trained,
        policy=policy.policy,
        place=policy.place,
        tower_trained=not stage.tower_frozen,
        other=other,
        record=weights if process_index() == 0 else lambda step, records: None,
    )


def _other(folder: Path, policy: PreparedPolicy, questions: Questions) -> tuple[ModelConfig, Any]:
    """(shape, parameters) of another model that teaches. ConfigError where its tokens are not the student's."""
    config = load_config(folder)
    theirs, ours = ChatTokenizer.from_pretrained(folder), questions.processor.tokenizer
    if theirs.length != ours.length or config.tokens != policy.config.tokens:
        raise ConfigError(
            f"teaching.model={folder}: its tokenizer is not the student's, so it cannot judge the student's tokens; "
            "choose a model of the same family"
        )
    other = other_model(config, policy)
    return other.config, load_params(folder, other.config, other.shardings)
