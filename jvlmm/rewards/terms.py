"""Which rewards count, and how much: presets, and terms of one's own."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from jvlmm.data.example import AnswerType, Example
from jvlmm.errors import ConfigError
from jvlmm.rewards.registry import bind
from jvlmm.rewards.user_files import is_user_file


@dataclass(frozen=True)
class RewardTerm:
    """One summand: `weight` times a reward of the registry, or of a file named as `path/to/file.py:function`."""

    name: str  # in metrics, and in overrides such as rewards.NAME.weight=0.5
    reward: str
    weight: float = 1.0  # 0: computed and logged, not trained on
    question_types: tuple[str, ...] = ()  # () takes all
    answer_types: tuple[AnswerType, ...] = ()  # () takes all
    arguments: Mapping[str, Any] = field(default_factory=dict)  # keyword arguments of the reward
    meta: tuple[str, ...] = ()  # what the meta of a row must have, null is nothing; () takes all

    def __post_init__(self):
        if not (self.weight >= 0 and math.isfinite(self.weight)):
            raise ConfigError(f"reward term {self.name!r}: weight = {self.weight} must be 0 or more")
        if unknown := set(self.answer_types) - set(get_args(AnswerType)):
            allowed = ", ".join(get_args(AnswerType))
            raise ConfigError(f"reward term {self.name!r}: answer type {min(unknown)!r} is unknown; allowed: {allowed}")
        if not is_user_file(self.reward):
            bind(self.reward, self.arguments)

    def applies(self, example: Example) -> bool:
        """Whether examples of these types, with such meta, are given the term."""
        return (
            all(example.meta.get(name) is not None for name in self.meta)
            and (not self.question_types or example.question_type in self.question_types)
            and (not self.answer_types or example.answer_type in self.answer_types)
        )


PRESETS: dict[str, tuple[RewardTerm, ...]] = {
    "default": (RewardTerm("accuracy", "accuracy", 0.9), RewardTerm("format", "format", 0.1)),  # as LongVILA-R1
    "video-r1": (RewardTerm("accuracy", "video_r1_accuracy"), RewardTerm("format", "video_r1_format")),
    "visd": (  # arXiv:2605.06094, released code; an unweighted sum, see `grounded`
        RewardTerm("ans_acc", "strict_or_free_form", answer_types=("mcq", "yesno", "number", "text")),
        RewardTerm("ans_tiou", "tagged_span", answer_types=("span",)),
        RewardTerm(
            "ans_tiou_choice", "tagged_span", question_types=("temporal",), answer_types=("mcq",), meta=("window",)
        ),
        RewardTerm("ans_viou", "tagged_box", answer_types=("boxes",)),
        RewardTerm("thk_temporal_point", "thought_moments", question_types=("spatio-temporal",)),
        RewardTerm("thk_temporal_segment", "thought_window", answer_types=("span",)),
        RewardTerm(
            "thk_temporal_segment_choice",
            "thought_window",
            question_types=("temporal",),
            answer_types=("mcq",),
            meta=("window",),
        ),
        RewardTerm("thk_spatial", "thought_objects", question_types=("spatio-temporal",)),
        RewardTerm("thk_box", "thought_box", answer_types=("boxes",)),
        RewardTerm("format", "grounded_format"),
    ),
}


@dataclass(frozen=True)
class RewardOptions:
    """The terms of a preset, and `terms` of one's own; one of a preset's name takes its place."""

    preset: Literal["default", "video-r1", "visd"] | None = "default"
    terms: tuple[RewardTerm, ...] = ()

    def __post_init__(self):
        if self.preset is not None and self.preset not in PRESETS:
            raise ConfigError(f"reward preset {self.preset!r} is unknown; allowed: {', '.join(PRESETS)} and none")
        names = [term.name for term in self.terms]
        if repeated := {name for name in names if names.count(name) > 1}:
            raise ConfigError(f"reward terms must have names of their own, {min(repeated)!r} stands twice; rename one")
        if not self.all_terms:
            raise ConfigError("there is no reward: choose a preset or give terms")

    @property
    def all_terms(self) -> tuple[RewardTerm, ...]:
        """What is computed: the preset's terms, then one's own."""
        own = {term.name for term in self.terms}
        return tuple(term for term in PRESETS.get(self.preset, ()) if term.name not in own) + self.terms
