"""The rewards by name, and their arguments bound."""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from jvlmm.data.example import Example
from jvlmm.errors import ConfigError, DataError
from jvlmm.rewards import answers, grounded, grounding, overlap, shaping, video_r1
from jvlmm.rewards.completion import Completion, RewardFunction

ANSWER_REWARDS: dict[str, Callable[..., float]] = {
    "accuracy": answers.accuracy,
    "multiple_choice": answers.multiple_choice,
    "multi_answer": answers.multi_answer,
    "numeric_strict": answers.numeric_strict,
    "numeric_tolerant": answers.numeric_tolerant,
    "regression": answers.regression,
    "mra": answers.mra,
    "ocr": overlap.ocr,
    "free_form": overlap.free_form,
    "strict_or_free_form": grounded.strict_or_free_form,
    "tagged_span": grounded.tagged_span,
    "tagged_box": grounded.tagged_box,
    "temporal_iou": grounding.temporal_iou,
    "time_r1_iou": grounding.time_r1_iou,
    "spatial_iou": grounding.spatial_iou,
    "tracking_iou": grounding.tracking_iou,
    "video_r1_accuracy": video_r1.video_r1_accuracy,
}
"""How right an answer is, in [0, 1]: the value is the accuracy of the completion."""

SHAPING_REWARDS: dict[str, Callable[..., float]] = {
    "format": shaping.format_reward,
    "video_r1_format": video_r1.video_r1_format,
    "survey_iou": grounding.survey_iou,
    "thought_moments": grounded.thought_moments,
    "thought_window": grounded.thought_window,
    "thought_objects": grounded.thought_objects,
    "thought_box": grounded.thought_box,
    "grounded_format": grounded.grounded_format,
    "repetition": shaping.repetition,
    "length": shaping.length,
    "overlong": shaping.overlong,
    "budget": shaping.budget,
}
"""What else a completion is rewarded or fined for."""

REWARDS = ANSWER_REWARDS | SHAPING_REWARDS

EMPTY = Completion("", 0)


def bind(name: str, arguments: Mapping[str, Any]) -> RewardFunction:
    """The reward of this name with its keyword arguments.

    Raises ConfigError for a name that is not registered, or arguments that are unknown, missing or impossible.
    """
    if name not in REWARDS:
        raise ConfigError(
            f"reward {name!r} is unknown; allowed: {', '.join(REWARDS)}, or a file of yours as path/to/file.py:function"
        )
    parameters = inspect.signature(REWARDS[name]).parameters.values()
    options = {p.name: p.default is p.empty for p in parameters if p.kind is p.KEYWORD_ONLY}
    if unknown := [key for key in arguments if key not in options]:
        raise ConfigError(f"reward {name!r} has no argument {unknown[0]!r}; allowed: {', '.join(options) or 'none'}")
    if missing := [key for key, required in options.items() if required and key not in arguments]:
        raise ConfigError(f"reward {name!r} needs the arguments {', '.join(missing)}")
    function = partial(REWARDS[name], **arguments)
    try:
        function(EMPTY, Example("", "", "", "text"))  # arguments are looked at before the gold answer
    except DataError:
        pass
    except (TypeError, ValueError) as error:
        raise ConfigError(f"reward {name!r} with {dict(arguments)}: {error}") from None
    return function
