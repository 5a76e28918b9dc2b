"""The GRPO step both layouts are measured on: one prompt with a video, and completions of equal length."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from jvlmm.bench.process import BenchError
from jvlmm.bench.workload import SIZES, Workload
from jvlmm.data.groups import Rollout
from jvlmm.models.config import ModelConfig

_LEAST_TEXT = 32  # tokens of a prompt beside its video


@dataclass(frozen=True)
class GroupWorkload:
    """The sizes of a step; the video takes as many frames as the prompt has places for."""

    prompt: int = 2048  # tokens, those of the video included
    completion: int = 128  # tokens of each
    group: int = 8  # completions
    height: int = 280
    width: int = 392

    @property
    def flags(self) -> str:
        """On the command line."""
        return f"--prompt {self.prompt} --completion {self.completion} --group {self.group}"

    def check(self, config: ModelConfig) -> None:
        """BenchError for a size that is too small."""
        frames = self._frame_tokens(config)
        why = f": two frames have {frames} tokens, and text {_LEAST_TEXT}"
        for name, least, reason in (("prompt", frames + _LEAST_TEXT, why), ("completion", 1, ""), ("group", 2, "")):
            if getattr(self, name) < least:
                value = getattr(self, name)
                raise BenchError(f"--{name} {value} is too small; give at least {least}{reason}")

    def of_prompt(self, config: ModelConfig) -> Workload:
        """The prompt as a row of one clip."""
        steps = (self.prompt - _LEAST_TEXT) // self._frame_tokens(config)
        frames = steps * config.vision.temporal_patch_size
        text = self.prompt - steps * self._frame_tokens(config)
        return Workload(frames, self.height, self.width, (text,), answer_tokens=0, new_tokens=self.completion)

    def _frame_tokens(self, config: ModelConfig) -> int:
        """Of the two frames that make one step of the tower's time."""
        side = config.vision.patch_size * config.vision.spatial_merge_size
        return (self.height // side) * (self.width // side)

    def save(self, folder: Path) -> None:
        (folder / SIZES).write_text(json.dumps(asdict(self)))

    @staticmethod
    def load(folder: Path) -> "GroupWorkload":
        return GroupWorkload(**json.loads((folder / SIZES).read_text()))

    def sizes(self, config: ModelConfig) -> dict[str, object]:
        """What the figures were measured on, for the report."""
        of_prompt = self.of_prompt(config).sizes(config)
        frames, visual = of_prompt["frames"], of_prompt["visual_tokens"]
        return {**asdict(self), "frames": frames, "visual_tokens": visual, "tower": "trained"}


def small_group() -> GroupWorkload:
    """The same in seconds, to try the command: two frames, short completions."""
    return GroupWorkload(prompt=50, completion=8, group=2, height=84, width=140)


def make_rollouts(workload: GroupWorkload, config: ModelConfig, seed: int = 1) -> tuple[list[Rollout], np.ndarray]:
    """(random words that nothing has ended, G completions of C; advantages float32 [G] of mean 0 and deviation 1)."""
    rng = np.random.default_rng(seed)
    shape, special = (workload.group, workload.completion), config.tokens
    words = min(special.image, special.video, special.vision_start, special.vision_end, special.pad, *special.eos)
    tokens = rng.integers(0, words, shape).astype(np.int32)
    log_probs = np.full(shape, -np.log(config.text.vocab_size), np.float32)
    rewards = rng.normal(size=workload.group).astype(np.float32)
    advantages = (rewards - rewards.mean()) / rewards.std()
    return [Rollout(*of_one, -of_one[1], finished=False) for of_one in zip(tokens, log_probs, strict=True)], advantages
