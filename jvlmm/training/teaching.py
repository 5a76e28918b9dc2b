"""A teacher beside the student: the same model, as it was or on average, which reads hindsight before each rollout."""

import time
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Sized
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jvlmm.data.batch import BatchOptions
from jvlmm.data.example import Example
from jvlmm.data.groups import GroupBatch, TeacherWords, collate_groups
from jvlmm.data.hindsight import privileged, split_prompt
from jvlmm.errors import ConfigError, DataError
from jvlmm.models.config import ModelConfig
from jvlmm.objectives.distillation import DISTILLATION_PROFILES, DistillationConfig
from jvlmm.objectives.visd import VISD_PROFILES, VISDConfig
from jvlmm.sharding.batches import fetched
from jvlmm.training.completions import teacher_words
from jvlmm.training.ema import ema_update
from jvlmm.training.experience import Group
from jvlmm.training.hindsight_writing import HindsightOptions, HindsightWriter, known_of
from jvlmm.training.policy_loss import Lesson, gaps_and_weights


@dataclass(frozen=True)
class TeachingOptions:
    """Who teaches, what the teacher knows more than the student, and what the student makes of it.

    The teacher begins as the student and goes `1 - decay` of the way to it, `every` so many updates: a moving average.
    With a decay of 0 it is the student itself, or, with `every`, an earlier one; with 1 it stays as it began. With
    `model` another one teaches, which has the student's tokenizer and stays what it is; it needs no hindsight.
    A teacher that is the student and has no lines of hindsight reads the header alone: a control, see
    `HindsightOptions`.
    """

    lesson: Lesson = field(default_factory=VISDConfig)
    model: str = ""  # a Hugging Face folder, or stage:NAME; "" is the student
    decay: float | None = 0.99  # None with a model, which follows nobody
    every: int = 1  # updates
    hindsight: HindsightOptions = field(default_factory=HindsightOptions)
    list_every: int = 50  # steps, of whose first group the weights of all tokens are listed; 0: none

    def __post_init__(self) -> None:
        if bool(self.model) != (self.decay is None):
            raise ConfigError(
                f"teaching.model={self.model!r} and teaching.decay={self.decay}: another model follows nobody and has "
                "decay=none; the student's average has a decay and no model"
            )
        if self.decay is not None and not 0 <= self.decay <= 1:
            raise ConfigError(
                f"teaching.decay={self.decay} must be in [0, 1]; 0.99 is a slow teacher, 1 one that stays"
            )
        if self.every < 1 or (self.every > 1 and self.decay in (1, None)):
            raise ConfigError(f"teaching.every={self.every} must be at least 1, and 1 for a teacher that stays")

    @property
    def distils(self) -> bool:
        """Whether the teacher's distribution is learnt in place of rewards: then what it knows nothing of is not."""
        return isinstance(self.lesson, DistillationConfig)

    def check(self, example: Example) -> None:
        """Raises DataError for a row that a distilling teacher knows no more of than the student: nothing is learnt.

        What other rollouts and the judge will say is not known beforehand.
        """
        lines = self.hindsight.lines
        if not (self.distils and lines) or {"sibling", "feedback"}.intersection(lines):
            return
        if not self.model and not known_of(example, lines).lines():
            what = {"answer": "an answer", "demonstration": "a response", "window": "a window", "moments": "key frames"}
            raise DataError(
                f"example {example.id!r} does not have {' or '.join(what[line] for line in lines)}, so the teacher "
                f"knows no more of it than the student (teaching.hindsight.lines={','.join(lines)}); give the row "
                "one, or name lines that it has, such as answer or feedback"
            )

    @property
    def has_weights(self) -> bool:
        """Whether the teacher is one the student's state has to keep: neither the student itself nor another model."""
        return not self.model and not (self.decay == 0 and self.every == 1)

    def lists(self, step: int) -> bool:
        """Whether the weights of this step are listed, from 1."""
        weighs = isinstance(self.lesson, VISDConfig) and self.list_every > 0
        return weighs and (step - 1) % self.list_every == 0

    def strength_at(self, update: int) -> float:
        """Of the lesson in this update of the optimiser, from 1; with 0 there is neither teacher nor judge."""
        return self.lesson.strength_at(update) if isinstance(self.lesson, VISDConfig) else 1.0


@dataclass
class Teaching:
    """What a policy step asks of teacher and judge."""

    options: TeachingOptions
    config: ModelConfig  # of the update
    batch: BatchOptions  # of the update's prompts
    hindsight: HindsightWriter
    temperature: float = 1.0
    trained: Callable[[Any], Mapping[str, Any]] = lambda params: params  # those of them that the optimiser changes
    policy: Callable[[Any], Any] = lambda params: params  # what computes log-probs, of the parameters that are trained
    place: Callable[[Any], Any] = lambda batch: batch  # puts a host batch on the devices
    tower_trained: bool = True  # then the teacher sees with its own, not by the groups' features
    other: tuple[ModelConfig, Any] | None = None  # (shape, parameters) of another model that teaches
    record: Callable[[int, Sized[dict[str, Any]]], None] = lambda step, records: None  # of tokens and their weights

    def __post_init__(self) -> None:
        self._words = jax.jit(
            partial(
                teacher_words,
                config=self.reader,
                top_k=self.options.lesson.top_k,
                vocab=None if self.other is None else self.config.text.vocab_size,
                temperature=self.temperature,
            ),
            static_argnames="places",
        )
        self._students = None
        if self.options.distils and self.options.lesson.support == "student":
            top_k = self.options.lesson.top_k
            pass_of_student = partial(teacher_words, config=self.config, top_k=top_k, temperature=self.temperature)
            self._students = jax.jit(pass_of_student, static_argnames="places")
        if isinstance(self.options.lesson, VISDConfig):
            self._weights = jax.jit(
                partial(gaps_and_weights, config=self.config, lesson=self.options.lesson, temperature=self.temperature)
            )
        decay = self.options.decay
        self._follow = jax.jit(lambda teacher, student: ema_update(teacher, student, decay), donate_argnums=0)
        self._copy = jax.jit(lambda student: jax.tree.map(lambda x: jnp.array(x, jnp.float32), student))

    @property
    def reader(self) -> ModelConfig:
        """The shape of the teacher."""
        return self.config if self.other is None else self.other[0]

    def begin(self, params: Any) -> Any:
        """The teacher's own weights, float32, laid out as the student's; None where the state has none to keep."""
        return self._copy(self.trained(params)) if self.options.has_weights else None

    def follow(self, teacher: Any, params: Any, update: int, moved: bool = True) -> Any:
        """The teacher after so many updates of the optimiser; None after the last one that it is needed for.

        Where the last of them has not `moved` the student, the teacher stays as it was, too.
        """
        if teacher is None or not self.options.strength_at(update + 1):
            return None
        if self.options.decay == 1 or update % self.options.every or not moved:
            return teacher
        return self._follow(teacher, self.trained(params))

    def teach(
        self, batches: Sized[GroupBatch], groups: Sized[Group], params: Any, teacher: Any, step: int, update: int
    ) -> tuple[list[GroupBatch], dict[str, float]]:
        """The batches of these groups, one after another, with the teacher's words; and figures.

        Args:
          teacher: its own weights, from `begin` or `follow`.
          step, update: of the run and of the optimiser, the next ones, from 1.
        """
        blocks, figures = self.hindsight.blocks(groups, params, step)
        begun = time.perf_counter()
        if self.other is None:
            weights = self.policy(params if teacher is None else {**params, **teacher})
        else:
            weights = self.other[1]
        strength = self.options.strength_at(update)
        rows, taught = self.batch.batch_size, []
        for number, batch in enumerate(batches):
            part = slice(number * rows, (number + 1) * rows)
            support = self._support(batch, params)
            taught.append(self._taught(batch, groups[part], blocks[part], weights, strength, support))
        seconds = {"seconds/teacher": time.perf_counter() - begun}
        if self.options.lists(step):
            self.record(step, self._listed(step, taught[0], groups[0], params))
        return taught, figures | {"teacher/strength": strength} | seconds

    def _support(self, batch: GroupBatch, params: Any) -> np.ndarray | None:
        """int32 [B, G, C, K]: the top-K tokens of the student that sampled; None where the teacher's are taken."""
        if self._students is None:
            return None
        starts, places = np.zeros(batch.rollout_mask.shape, np.int32), batch.completion_mask.shape[-1]
        given = {"batch": self.place(batch), "starts": self.place(starts)}
        return fetched(self._students(self.policy(params), **given, places=places))[0]

    def _taught(
        self,
        batch: GroupBatch,
        groups: Sized[Group],
        blocks: Sized[Sized[np.ndarray]],
        weights: Any,
        strength: float,
        support: np.ndarray | None,
    ) -> GroupBatch:
        prompts, followed = [], []
        starts, known = (np.zeros(batch.rollout_mask.shape, dtype) for dtype in (np.int32, bool))
        for row, (group, of_group) in enumerate(zip(groups, blocks, strict=True)):
            prompt, tail = split_prompt(group.prompt.sequence, self.hindsight.tokenizer)
            rollouts, starts[row] = privileged(group.rollouts, of_group, tail)
            prompts.append(prompt)
            followed.append(rollouts)
            known[row] = [len(block) > 0 or self.other is not None for block in of_group]
        features = None if self.tower_trained or self.other else [group.features for group in groups]
        read = collate_groups(prompts, followed, self.batch, self.reader, features)
        places = batch.completion_mask.shape[-1]
        given = {"batch": self.place(read), "starts": self.place(starts)}
        if support is not None:
            given["words"] = self.place(support)
        ids, best, own, log_probs = fetched(self._words(weights, **given, places=places))
        strengths = np.full(len(known), strength, np.float32)
        return batch.replace(teacher=TeacherWords(ids, best, own, log_probs, known, strengths))

    def _listed(self, step: int, batch: GroupBatch, group: Group, params: Any) -> list[dict[str, Any]]:
        """The tokens of a batch's first group, what the teacher held of them, and what they weigh; JSON-ready."""
        gaps, weights = fetched(self._weights(self.policy(params), batch=self.place(batch)))
        tokenizer = self.hindsight.tokenizer
        return [
            {
                "step": step,
                "id": group.prompt.example.id,
                "sample": number,
                "advantage": float(batch.advantages[0, number]),
                "tokens": [tokenizer.decode(rollout.tokens[k : k + 1]) for k in range(len(rollout.tokens))],
                "gaps": gaps[0, number, : len(rollout.tokens)].round(4).tolist(),
                "weights": weights[0, number, : len(rollout.tokens)].round(4).tolist(),
            }
            for number, rollout in enumerate(group.rollouts)
        ]


_SOLUTION, _ANSWER = HindsightOptions(("demonstration",)), HindsightOptions(("answer",))
_SIBLING = HindsightOptions(("sibling", "feedback"))

# The release is that of VISD; the others' constants are those of their papers. SDPO and SDFT are over the student's
# top-K as published; OPSD and GKD sum over the whole vocabulary, here over the teacher's top-K and all others as one.
TEACHING_PROFILES: Mapping[str, TeachingOptions] = MappingProxyType(
    {
        "visd_release": TeachingOptions(VISD_PROFILES["visd_release"]),
        "rlsd": TeachingOptions(VISD_PROFILES["rlsd"], decay=0, every=20, hindsight=_ANSWER),
        "opsd": TeachingOptions(DISTILLATION_PROFILES["opsd"], decay=1, hindsight=_SOLUTION),
        "sdpo": TeachingOptions(DISTILLATION_PROFILES["sdpo"], decay=0.95, hindsight=_SIBLING),
        "sdpo_reverse": TeachingOptions(DISTILLATION_PROFILES["sdpo_reverse"], decay=0.99, hindsight=_SIBLING),
        "sdft": TeachingOptions(DISTILLATION_PROFILES["sdft"], decay=1, hindsight=_SOLUTION),
        # Set the model. With groups of 2, one of them the row's own response (group.offline), half is on-policy.
        "gkd": TeachingOptions(
            DISTILLATION_PROFILES["gkd"], model="teacher", decay=None, hindsight=HindsightOptions(())
        ),
    }
)
