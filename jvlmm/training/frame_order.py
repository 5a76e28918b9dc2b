"""T-GRPO (Video-R1, Feng et al., arXiv:2503.21776): does a policy answer better when it sees the frames in order?"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from jvlmm.data.sequence import Sequence
from jvlmm.errors import ConfigError
from jvlmm.rewards.groups import CORRECT, temporal_bonus, video_r1_temporal_bonus
from jvlmm.video.clip import Patches


@dataclass(frozen=True)
class FrameOrder:
    """Rollouts on shuffled frames, and the bonus of correct rollouts on the ordered ones."""

    form: Literal["paper", "video-r1"] = "video-r1"  # see `rewards.groups`
    shuffled: int = 4  # rollouts of each video on shuffled frames; Video-R1 has half a group
    weight: float = 0.3  # of the bonus
    margin: float | None = None  # "paper": by how much order must help
    ratio: float | None = None  # "video-r1": how much of the accuracy on shuffled frames is enough; the code has 0.8

    def __post_init__(self) -> None:
        if self.form not in ("paper", "video-r1"):
            raise ConfigError(f"frame_order.form={self.form!r} is unknown; choose paper or video-r1")
        if self.shuffled < 1 or self.weight <= 0:
            raise ConfigError(
                f"frame_order.shuffled={self.shuffled}, frame_order.weight={self.weight}: need at least 1 rollout and "
                "a positive weight"
            )
        other = "ratio" if self.form == "paper" else "margin"
        if getattr(self, other) is not None:
            raise ConfigError(
                f"frame_order.{other}={getattr(self, other)} has no effect with form={self.form!r}; leave it none"
            )

    def bonus(self, accuracy: np.ndarray, shuffled_accuracy: np.ndarray) -> np.ndarray:
        """float64 [B, G] of videos, from accuracies float [B, G] on frames in order and [B, S] on shuffled ones."""
        if self.form == "paper":
            right, shuffled_right = (np.nan_to_num(x) > CORRECT for x in (accuracy, shuffled_accuracy))
            return temporal_bonus(right, shuffled_right, self.weight, self.margin or 0.0)
        is_video, ratio = np.ones(len(accuracy), bool), 0.8 if self.ratio is None else self.ratio
        return video_r1_temporal_bonus(accuracy, shuffled_accuracy, is_video, ratio, self.weight)


def shuffled_frames(sequence: Sequence, seed: int) -> Sequence:
    """The sequence with the temporal patches of its videos in another order; times and positions stay."""
    rng = np.random.default_rng(seed)
    return replace(sequence, patches=tuple(_shuffled(patches, rng) for patches in sequence.patches))


def _shuffled(patches: Patches, rng: np.random.Generator) -> Patches:
    frames = patches.pixels.reshape(patches.grid[0], -1, patches.pixels.shape[-1])
    return replace(patches, pixels=frames[rng.permutation(len(frames))].reshape(patches.pixels.shape))
