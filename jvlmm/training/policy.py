"""Policy optimisation of the whole model: groups of rollouts → log-probs → the objective → updates."""

import time
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Sequence as Sized
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np

from jvlmm.data.batch import BatchOptions
from jvlmm.data.groups import GroupBatch, collate_groups
from jvlmm.data.pass_rates import PassRates
from jvlmm.data.prompt_stream import Prompt, PromptStream
from jvlmm.errors import ConfigError
from jvlmm.models.config import ModelConfig
from jvlmm.objectives.grpo import GRPOConfig
from jvlmm.objectives.kl import rollout_kl
from jvlmm.sharding.batches import fetched
from jvlmm.training.advantage_estimator import AdvantageEstimator
from jvlmm.training.agreement import AgreedPrompts
from jvlmm.training.completions import group_log_probs
from jvlmm.training.experience import Draw, Experience, Gatherer, Group
from jvlmm.training.state import TrainState
from jvlmm.training.step import TrainStep
from jvlmm.training.teaching import Teaching

_PER_TOKEN = ("kl_sum", "token_weight_sum")
_PER_SAMPLED = ("ratio_sum", "clipped_low", "clipped_high", "clipped_dual", "sampler_gap_sum")
_PER_OFFLINE = ("offline_probability_sum",)


@dataclass(frozen=True)
class UpdateOptions:
    """How the rollouts of a step are learnt."""

    rows: int = 8  # prompts, with their groups, of a device step
    updates: int = 1  # of the optimiser in one pass over the rollouts
    epochs: int = 1  # passes

    def __post_init__(self) -> None:
        for name in ("rows", "updates", "epochs"):
            if getattr(self, name) < 1:
                raise ConfigError(f"update.{name}={getattr(self, name)} must be at least 1")

    @property
    def per_step(self) -> int:
        """Updates of the optimiser on the rollouts of a step."""
        return self.updates * self.epochs

    @property
    def off_policy(self) -> bool:
        """Whether rollouts are learnt by a policy that is no longer the one that made them."""
        return self.per_step > 1


@dataclass(frozen=True)
class PolicyData:
    """The prompts, and what the advantages remember, under one position for `training.loop.fit`."""

    prompts: PromptStream | AgreedPrompts
    estimator: AdvantageEstimator
    pass_rates: PassRates

    def __next__(self) -> tuple[tuple[Prompt, ...], tuple[str, ...]]:
        return next(self.prompts)

    def get_state(self) -> dict[str, Any]:
        parts = {"prompts": self.prompts, "advantages": self.estimator, "pass_rates": self.pass_rates}
        return {name: part.get_state() for name, part in parts.items()}

    def set_state(self, state: dict[str, Any]) -> None:
        self.prompts.set_state(state["prompts"])
        self.pass_rates.set_state(state["pass_rates"])
        self.estimator.set_state(state["advantages"])


@dataclass
class PolicyStep:
    """Callable `(state, [prompts]) -> (state, metrics)` for `training.loop.fit`: sample, score, update.

    A step is all updates on the rollouts of its prompts; `state.step` counts steps.
    """

    config: ModelConfig
    objective: GRPOConfig
    update: TrainStep  # of `policy_loss.make_policy_loss`, at the temperature of the gatherer's engine
    options: UpdateOptions
    batch: BatchOptions  # of `options.rows` prompts
    gatherer: Gatherer
    estimator: AdvantageEstimator
    more: Draw  # further prompts
    seed: int
    steps: int  # of the run, by which rewards know how far it is
    sampler: Callable[[Any], Any] = lambda params: params  # what samples, of the parameters that are trained
    policy: Callable[[Any], Any] = lambda params: params  # what computes log-probs, likewise
    reference: Callable[[Any], Any] | None = None  # the reference model, likewise; with beta only
    place: Callable[[Any], Any] = lambda batch: batch  # puts a host batch on the devices
    tower_trained: bool = True  # or the merger; else features are kept, and the update begins with them
    record: Callable[[int, Sized[Group]], None] = lambda step, groups: None
    teaching: Teaching | None = None  # the state has its teacher

    def __post_init__(self) -> None:
        temperature = self.gatherer.engine.sampling.temperature
        self._log_probs = jax.jit(partial(group_log_probs, config=self.config, temperature=temperature))

    @property
    def compiles(self) -> int:
        """Programs of the update compiled so far."""
        return self.update.compiles

    def state_at(self, state: TrainState, done: int) -> TrainState:
        """The state as it is after so many steps: with a teacher, where one is needed still."""
        if self.teaching is None or not self.teaching.options.strength_at(done * self.options.per_step + 1):
            return state
        return state.replace(teacher=self.teaching.begin(state.params))

    def __call__(self, state: TrainState, given: Sized[Sized[Prompt]]) -> tuple[TrainState, dict[str, Any]]:
        number = int(state.step)
        teacher, state = state.teacher, state.replace(teacher=None)
        prompts = [prompt for part in given for prompt in part]
        if self.tower_trained:
            self.gatherer.features.forget()
        seed = _step_seed(self.seed, number)
        done = number / self.steps
        experience = self.gatherer.gather(self.sampler(state.params), prompts, self.more, seed, done)
        self.record(number + 1, experience.drawn)
        batches = self._batches(experience, state.params)
        updates, figures = number * self.options.per_step, {}
        if self.teaching is not None and self.teaching.options.strength_at(updates + 1):
            given = batches, experience.groups, state.params, teacher
            batches, figures = self.teaching.teach(*given, number + 1, updates + 1)
        begun = time.perf_counter()
        totals: list[dict[str, float]] = []
        for _ in range(self.options.epochs):
            for part in _parts(batches, self.options.updates):
                state, metrics = self.update(state, part)
                totals.append({name: float(value) for name, value in jax.device_get(metrics).items()})
                if self.teaching is not None:
                    moved = not totals[-1]["skipped"]
                    teacher = self.teaching.follow(teacher, state.params, updates + len(totals), moved)
        state = state.replace(step=state.step - (self.options.per_step - 1), teacher=teacher)
        figures["seconds/update"] = time.perf_counter() - begun
        return state, experience.metrics | update_metrics(totals) | figures

    def _batches(self, experience: Experience, params: Any) -> list[GroupBatch]:
        rows, groups = self.options.rows, experience.groups
        parts = [groups[k : k + rows] for k in range(0, len(groups), rows)]
        batches = [self._with_log_probs(self._collated(part), params) for part in parts]
        rewards = np.stack([group.rewards for group in groups])
        if self.objective.kl_place == "reward":
            of_rows = [
                np.asarray(rollout_kl(b.old_log_probs, b.reference_log_probs, b.completion_mask, self.objective.kl))
                for b in batches
            ]
            rewards = rewards - self.objective.beta * np.concatenate(of_rows)[: len(groups)]
        tasks, valid = [group.prompt.example.question_type for group in groups], np.stack([g.scored for g in groups])
        advantages, weights = self.estimator(rewards, tasks, valid)
        return [
            _with_advantages(batch, advantages[k : k + rows], weights[k : k + rows])
            for batch, k in zip(batches, range(0, len(groups), rows), strict=True)
        ]

    def _collated(self, groups: Sized[Group]) -> GroupBatch:
        prompts, rollouts = [group.prompt.sequence for group in groups], [group.rollouts for group in groups]
        features = None if self.tower_trained else [group.features for group in groups]
        max_tokens = self.gatherer.engine.sampling.max_tokens
        batch = collate_groups(prompts, rollouts, self.batch, self.config, features, max_tokens)
        if self.gatherer.options.offline:
            offline = np.zeros_like(batch.rollout_mask)
            offline[: len(rollouts)] = [[rollout.offline for rollout in row] for row in rollouts]
            batch = batch.replace(offline=offline)
        if self.gatherer.options.skip_truncated:
            truncated = np.zeros_like(batch.rollout_mask)
            truncated[: len(rollouts)] = [[not rollout.finished for rollout in row] for row in rollouts]
            batch = batch.replace(truncated=truncated)
        return batch

    def _with_log_probs(self, batch: GroupBatch, params: Any) -> GroupBatch:
        """With those of the policy that sampled, and of the reference model, where they are needed."""
        models = {}
        if self.options.off_policy or self.objective.kl_place == "reward":
            models["old_log_probs"] = self.policy
        if self.objective.beta:
            models["reference_log_probs"] = self.reference
        if not models:
            return batch
        given = self.place(batch)
        return batch.replace(**{name: fetched(self._log_probs(of(params), batch=given)) for name, of in models.items()})


def update_metrics(updates: Sized[Mapping[str, float]]) -> dict[str, float]:
    """Of the metrics of each update: means over tokens, and over updates what has no tokens.

    Updates that were skipped for numbers that are not finite are counted, and are in the means only where all were.
    """
    skipped, norm = sum(update["skipped"] for update in updates), updates[-1]["param_norm"]
    updates = [update for update in updates if not update["skipped"]] or updates
    total = lambda name: sum(update.get(name, 0.0) for update in updates)  # noqa: E731
    metrics = {name: float(np.mean([u[name] for u in updates])) for name in ("loss", "grad_norm", "learning_rate")}
    tokens, offline = total("tokens"), total("offline_tokens")
    for names, count in ((_PER_TOKEN, tokens), (_PER_SAMPLED, tokens - offline), (_PER_OFFLINE, offline)):
        metrics |= {name.removesuffix("_sum"): total(name) / max(count, 1.0) for name in names if name in updates[0]}
    for name in (name for name in updates[0] if name.startswith("visd/")):
        _, _, *third = name.split("/")
        metrics[name] = total(name) / max(total("/".join(["visd/tokens", *third])), 1.0)
    return metrics | {"tokens": tokens, "param_norm": norm, "skipped": skipped}


def _with_advantages(batch: GroupBatch, advantages: np.ndarray, weights: np.ndarray) -> GroupBatch:
    batch.advantages[: len(advantages)] = advantages
    batch.prompt_weights[: len(weights)] = weights
    return batch


def _parts(batches: Sized[GroupBatch], number: int) -> Iterator[Sized[GroupBatch]]:
    """The batches in so many parts of equal size."""
    size = len(batches) // number
    return (batches[k : k + size] for k in range(0, len(batches), size))


def _step_seed(seed: int, step: int) -> int:
    """uint32 for each step of a run."""
    return int(np.random.SeedSequence([seed, step]).generate_state(1)[0])
