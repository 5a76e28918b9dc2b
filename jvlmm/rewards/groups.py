"""Bonuses that depend on the other completions of a group: T-GRPO in both its forms, and Video-R1's length bonus.

Each is to be added to the rewards of the groups. Arrays are NumPy; B prompts, G completions of each.
"""

from dataclasses import dataclass

import numpy as np

from jvlmm.errors import ConfigError

CORRECT = 0.1  # accuracy above which Video-R1's code takes a completion as correct


def temporal_bonus(correct: np.ndarray, shuffled_correct: np.ndarray, weight: float, margin: float = 0.0) -> np.ndarray:
    """T-GRPO as papers have it: λ · max(0, p − p̃ − m) for each correct completion.

    p and p̃ are the shares of correct completions on the frames in order and shuffled.

    Args:
      correct: bool [B, G], of the completions on frames in order.
      shuffled_correct: bool [B, S], of those on shuffled frames.
      weight: λ, 0 or more.
      margin: m, by which order must help before it is rewarded.

    Returns:
      float64 [B, G].
    """
    gain = correct.mean(-1, keepdims=True) - shuffled_correct.mean(-1, keepdims=True) - margin
    return weight * np.maximum(0.0, gain) * correct


def video_r1_temporal_bonus(
    accuracy: np.ndarray,
    shuffled_accuracy: np.ndarray,
    is_video: np.ndarray,
    ratio: float = 0.8,
    bonus: float = 0.3,
) -> np.ndarray:
    """T-GRPO as Video-R1's code has it: `bonus` for each correct completion where order does not hurt.

    Order does not hurt where the mean accuracy is at least `ratio` times that on shuffled frames; the code has 0.8, its
    author names 1.0. Correct is an accuracy above `CORRECT`. Images get none.

    Args:
      accuracy: float [B, G], of the completions on frames in order; NaN counts as wrong.
      shuffled_accuracy: float [B, S], of those on shuffled frames; NaN counts as wrong.
      is_video: bool [B].

    Returns:
      float64 [B, G].
    """
    accuracy, shuffled_accuracy = np.nan_to_num(accuracy), np.nan_to_num(shuffled_accuracy)
    helps = accuracy.mean(-1, keepdims=True) >= ratio * shuffled_accuracy.mean(-1, keepdims=True)
    return bonus * (helps & is_video[:, None] & (accuracy > CORRECT))


def video_r1_length_bonus(
    accuracy: np.ndarray,
    num_tokens: np.ndarray,
    min_tokens: int = 320,
    max_tokens: int = 512,
    bonus: float = 0.2,
) -> np.ndarray:
    """`bonus` for correct completions of `min_tokens` to `max_tokens` tokens, where two or more of a group are correct.

    Args:
      accuracy: float [B, G]; NaN counts as wrong, above `CORRECT` as correct.
      num_tokens: int [B, G].

    Returns:
      float64 [B, G].
    """
    correct = accuracy > CORRECT
    fitting = (num_tokens >= min_tokens) & (num_tokens <= max_tokens)
    return bonus * (correct & fitting & (correct.sum(-1, keepdims=True) > 1))


@dataclass(frozen=True)
class LengthBonus:
    """Video-R1's length control, as an option of a group's rollouts: see `video_r1_length_bonus`."""

    min_tokens: int = 320
    max_tokens: int = 512
    bonus: float = 0.2

    def __post_init__(self) -> None:
        if not (0 <= self.min_tokens <= self.max_tokens and self.bonus > 0):
            raise ConfigError(
                f"group.length_bonus.min_tokens={self.min_tokens}, max_tokens={self.max_tokens}, bonus={self.bonus}: "
                "need 0 <= min_tokens <= max_tokens and a bonus above 0"
            )

    def __call__(self, accuracy: np.ndarray, num_tokens: np.ndarray) -> np.ndarray:
        """float64 [B, G], from accuracies float [B, G] and tokens int [B, G]."""
        return video_r1_length_bonus(accuracy, num_tokens, self.min_tokens, self.max_tokens, self.bonus)
