"""Prompts → rollouts → rewards: what a policy learns from, made with the policy itself."""

import time
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Sized
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from jvlmm.data.example import Example
from jvlmm.data.groups import Rollout
from jvlmm.data.prompt_stream import Prompt
from jvlmm.data.sequence import Sequence
from jvlmm.errors import ConfigError
from jvlmm.rewards.completion import Completion
from jvlmm.rewards.groups import LengthBonus
from jvlmm.rewards.rewarder import Rewarder
from jvlmm.rewards.table import RewardTable
from jvlmm.rollout.engine import Engine
from jvlmm.rollout.features import VisualFeatures
from jvlmm.rollout.generate import cut_at_stop
from jvlmm.training.frame_order import FrameOrder, shuffled_frames

Draw = Callable[[], Sized[Prompt]]


@dataclass(frozen=True)
class GroupOptions:
    """The rollouts of a step."""

    size: int = 8  # of each prompt
    resample_rounds: int = 0  # DAPO's dynamic sampling: times that a step may draw prompts for those without a gradient
    skip_truncated: bool = False  # DAPO's overlong filtering: rollouts that max_tokens cut are counted, not learnt
    frame_order: FrameOrder | None = None  # T-GRPO: rewards for answers that need the frames in order
    length_bonus: LengthBonus | None = None  # Video-R1's: for correct answers of a wanted length
    offline: bool = False  # one of each group is the example's own response, where it has one (LUFFY's mixed policy)

    def __post_init__(self) -> None:
        if self.size < 2:
            raise ConfigError(f"group.size={self.size}: rollouts of a prompt are compared; sample at least 2")
        if self.resample_rounds < 0:
            raise ConfigError(f"group.resample_rounds={self.resample_rounds} must be at least 0 (0: off)")


@dataclass(frozen=True)
class Group:
    """One prompt with its scored rollouts."""

    prompt: Prompt
    features: np.ndarray  # [m, D]
    rollouts: tuple[Rollout, ...]  # G
    texts: tuple[str, ...]  # G
    rewards: np.ndarray  # float64 [G]; 0 where there is none
    parts: dict[str, np.ndarray]  # float64 [G] by term; NaN where the term does not apply or failed
    valid: np.ndarray | None = None  # bool [G]: which have a reward; None: all
    accuracy: np.ndarray | None = None  # float64 [G] of the answers; NaN where no term judges them

    @property
    def scored(self) -> np.ndarray:
        """bool [G]: the rollouts that have a reward; the others take part in no mean and are not learnt from."""
        return np.ones(len(self.rewards), bool) if self.valid is None else self.valid

    @property
    def informative(self) -> bool:
        """Whether its rewards differ; else it has no gradient."""
        return bool(self.scored.any() and np.ptp(self.rewards[self.scored]) > 0)

    @property
    def compared(self) -> bool:
        """Whether at least two of its rollouts have a reward; else nobody knows whether they differ."""
        return bool(self.scored.sum() > 1)

    def records(self, step: int) -> Iterator[dict[str, Any]]:
        """Its rollouts, JSON-ready, to be read by people."""
        example = self.prompt.example
        for number, (rollout, text) in enumerate(zip(self.rollouts, self.texts, strict=True)):
            parts = {name: float(values[number]) for name, values in self.parts.items()}
            yield {
                "step": step,
                "id": example.id,
                "question_type": example.question_type,
                "answer": example.answer,
                "sample": number,
                "text": text,
                "tokens": len(rollout.tokens),
                "finished": rollout.finished,
                "reward": float(self.rewards[number]) if self.scored[number] else None,
                "parts": {name: value for name, value in parts.items() if not np.isnan(value)},
            }


@dataclass(frozen=True)
class Experience:
    """What a step learns from, and the figures of all that was drawn for it."""

    groups: tuple[Group, ...]
    drawn: tuple[Group, ...]  # with those that were left out
    metrics: dict[str, float]


@dataclass
class Gatherer:
    """Samples and scores. The tower runs once for each distinct image or video."""

    engine: Engine
    features: VisualFeatures
    rewarder: Rewarder
    options: GroupOptions
    _seconds: dict[str, float] = field(default_factory=dict)
    _progress: float = 1.0
    _accuracy_known: bool = False  # of any answer so far

    def gather(self, params: Any, prompts: Sized[Prompt], more: Draw, seed: int, progress: float = 1.0) -> Experience:
        """As many groups as there are prompts.

        With `resample_rounds`, prompts from `more()` take the places of those whose rewards are all equal, until there
        are enough others or the rounds have passed; then such remain. `seed` uint32, another one for each step;
        `progress` in [0, 1], the share of the training that lies behind. Raises ConfigError with the reason where no
        rollout has a reward.
        """
        self._progress = progress
        self._seconds = {"tower": 0.0, "reward": 0.0}
        before = dict(self.engine.seconds)
        groups, tables, examples = [], [], []
        for attempt in range(self.options.resample_rounds + 1):
            fresh = more() if attempt else prompts
            table, of_round = self._round(params, fresh, np.uint32(seed + attempt * 0x9E3779B9 & 0xFFFFFFFF))
            groups += of_round
            tables.append(table)
            examples += [group.prompt.example for group in of_round for _ in group.rollouts]
            if sum(group.informative for group in groups) >= len(prompts):
                break
        chosen = sorted(groups, key=lambda group: not group.informative)[: len(prompts)]
        spent = {name: seconds - before[name] for name, seconds in self.engine.seconds.items()}
        seconds = {f"seconds/{name}": value for name, value in (self._seconds | spent).items()}
        scored = RewardTable.joined(tables)
        scored.require_some()
        metrics = scored.metrics(examples) | rollout_metrics(groups) | seconds
        return Experience(tuple(chosen), tuple(groups), metrics)

    def _round(self, params: Any, prompts: Sized[Prompt], seed: np.uint32) -> tuple[RewardTable, list[Group]]:
        sequences = [prompt.sequence for prompt in prompts]
        given = [self._offline(prompt) for prompt in prompts]
        sizes = [self.options.size - len(of_prompt) for of_prompt in given]
        features, rollouts, texts = self._rollouts(params, sequences, sizes, seed)
        for row, of_prompt in enumerate(given):
            rollouts[row] += of_prompt
            texts[row] += [self.engine.tokenizer.decode(rollout.tokens) for rollout in of_prompt]
        table = self._scored(prompts, rollouts, texts)
        self._require_accuracy(table)
        if self.options.frame_order is not None:
            table = self._with_order_bonus(params, prompts, table, seed)
        if self.options.length_bonus is not None:
            table = self._with_length_bonus(table, rollouts)
        valid = ~np.isnan(table.total.reshape(len(prompts), -1))
        rewards = np.where(valid, table.total.reshape(valid.shape), 0.0)
        accuracy = table.accuracy.reshape(valid.shape)
        by_prompt = {name: part.reshape(rewards.shape) for name, part in table.parts.items()}
        groups = [
            Group(*of, {name: part[row] for name, part in by_prompt.items()}, valid[row], accuracy[row])
            for row, of in enumerate(
                zip(prompts, features, map(tuple, rollouts), map(tuple, texts), rewards, strict=True)
            )
        ]
        return table, groups

    def _offline(self, prompt: Prompt) -> list[Rollout]:
        """The example's own response, if it has one that is short enough."""
        tokens = prompt.response if self.options.offline else None
        if tokens is None or len(tokens) > self.engine.sampling.max_tokens:
            return []
        nothing = np.zeros(len(tokens), np.float32)
        return [Rollout(tokens, nothing, nothing, finished=True, offline=True)]

    def _rollouts(self, params: Any, prompts: Sized[Sequence], size: int | Sized[int], seed: np.uint32):
        """(features of each prompt, rollouts [B][G], their texts)."""
        begun = time.perf_counter()
        features = self.features.of(params, prompts)
        self._seconds["tower"] += time.perf_counter() - begun
        rollouts = self.engine.sample(params, prompts, features, size, seed)
        decode, stop = self.engine.tokenizer.decode, self.engine.sampling.stop
        return features, rollouts, [[cut_at_stop(decode(r.tokens), stop) for r in row] for row in rollouts]

    def _scored(self, prompts: Sized[Prompt], rollouts, texts) -> RewardTable:
        begun = time.perf_counter()
        pairs = [pair for row in zip(rollouts, texts, strict=True) for pair in zip(*row, strict=True)]
        completions = [
            Completion(text, len(rollout.tokens), rollout.finished, self._progress) for rollout, text in pairs
        ]
        table = self.rewarder(completions, _repeated([p.example for p in prompts], rollouts))
        self._seconds["reward"] += time.perf_counter() - begun
        return table

    def _require_accuracy(self, table: RewardTable) -> None:
        """Raise ConfigError where a bonus is for right answers and the first rewards do not tell which are right."""
        bonuses = [name for name in ("length_bonus", "frame_order") if getattr(self.options, name) is not None]
        scored = ~np.isnan(table.total)
        self._accuracy_known |= not np.isnan(table.accuracy).all()
        if bonuses and scored.any() and not self._accuracy_known:
            raise ConfigError(
                f"group.{bonuses[0]} pays for right answers, and no term of rewards says which are right: add the term "
                "accuracy (of weight 0, say), let a function of verl's form return 'acc', or leave the bonus none"
            )

    def _with_order_bonus(
        self, params: Any, prompts: Sized[Prompt], table: RewardTable, seed: np.uint32
    ) -> RewardTable:
        """With T-GRPO's part, `frame_order`, from rollouts on shuffled frames; images have none.

        Nor have videos of which no rollout could be scored, in order or shuffled.
        """
        order, accuracy = self.options.frame_order, table.accuracy.reshape(len(prompts), -1)
        bonus, failures = np.full(accuracy.shape, np.nan), table.failures
        rows = [row for row, p in enumerate(prompts) if any(m.type == "video" for m in p.example.media)]
        if rows:
            videos = [replace(prompts[row], sequence=shuffled_frames(prompts[row].sequence, int(seed))) for row in rows]
            sequences = [video.sequence for video in videos]
            _, rollouts, texts = self._rollouts(params, sequences, order.shuffled, seed ^ np.uint32(1))
            shuffled = self._scored(videos, rollouts, texts)
            # rollouts that could not be scored are not wrong ones: they take part on neither side
            scored = ~np.isnan(table.total.reshape(accuracy.shape))
            of_shuffled = shuffled.accuracy.reshape(len(rows), -1)
            shuffled_scored = ~np.isnan(shuffled.total.reshape(of_shuffled.shape))
            for row, others, known in zip(rows, of_shuffled, shuffled_scored, strict=True):
                if scored[row].any() and known.any():
                    bonus[row, scored[row]] = order.bonus(accuracy[None, row, scored[row]], others[None, known])[0]
            failures = RewardTable.joined([table, shuffled]).failures
        bonus = bonus.ravel()
        total, parts = table.total + np.nan_to_num(bonus), {**table.parts, "frame_order": bonus}
        return replace(table, total=total, parts=parts, failures=failures)

    def _with_length_bonus(self, table: RewardTable, rollouts) -> RewardTable:
        """With Video-R1's part, `length_bonus`."""
        tokens = np.array([[len(rollout.tokens) for rollout in row] for row in rollouts])
        bonus = self.options.length_bonus(table.accuracy.reshape(tokens.shape), tokens).ravel()
        return replace(table, total=table.total + bonus, parts={**table.parts, "length_bonus": bonus})


def rollout_metrics(groups: Sized[Group]) -> dict[str, float]:
    """Means over the rollouts drawn: lengths in tokens, shares, entropy of the sampler in nats a token.

    Of rollouts that another policy wrote, their share of all and their mean reward.
    """
    every = [pair for group in groups for pair in zip(group.rollouts, group.rewards, group.scored, strict=True)]
    rollouts = [rollout for rollout, *_ in every if not rollout.offline]
    offline = [reward if scored else np.nan for rollout, reward, scored in every if rollout.offline]
    rewarded = [reward for reward in offline if not np.isnan(reward)]
    of_others = {"offline": len(offline) / len(every)} if offline else {}
    of_others |= {"reward_offline": float(np.mean(rewarded))} if rewarded else {}
    compared = [group.rewards[group.scored] for group in groups if group.compared]
    lengths = np.array([len(rollout.tokens) for rollout in rollouts])
    return {
        "reward_std": float(np.mean([rewards.std(ddof=1) for rewards in compared])) if compared else 0.0,
        "without_reward": float(np.mean([not scored for *_, scored in every])),
        "equal_groups": float(np.mean([not group.informative for group in groups])),
        "groups_drawn": float(len(groups)),
        "response_tokens": float(lengths.mean()),
        "truncated": float(np.mean([not rollout.finished for rollout in rollouts])),
        "entropy": float(sum(rollout.entropies.sum() for rollout in rollouts) / max(lengths.sum(), 1)),
        "sampled_tokens": float(lengths.sum()),
    } | of_others


def _repeated(examples: Sized[Example], rollouts) -> list[Example]:
    return [example for example, row in zip(examples, rollouts, strict=True) for _ in row]
