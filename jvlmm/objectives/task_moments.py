"""EMA-GRPO: advantages scaled by a moving standard deviation of the rewards of their task.

OneThinker (arXiv:2512.03043 §3.3). Runs on the host, in NumPy: the state belongs to the training loop and is saved
with it. What the paper leaves open is as in the released code: moments begin at those of a task's first batch, and
the deviation is at least 1e-3.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from jvlmm.objectives.advantages import require_groups

DECAY = 0.99  # of the moments, per step in which the task occurs
LIMIT = 5.0  # advantages are clipped to ± this
_LEAST_STD = 1e-3


@dataclass(frozen=True)
class TaskMoments:
    """Moving first and second moment of the rewards of each task; `json.dumps(moments.tasks)` is its JSON form."""

    tasks: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def std(self, task: str) -> float:
        """Moving standard deviation of the task's rewards (eq. 10), at least 1e-3. KeyError for a task not yet seen."""
        first, second = self.tasks[task]
        return max(math.sqrt(max(second - first * first, 0.0)), _LEAST_STD)

    def updated(self, rewards: np.ndarray, tasks: Sequence[str], valid: np.ndarray, decay: float) -> "TaskMoments":
        """The moments after a step (eq. 9); arguments as for `ema_advantages`. Tasks without rewards keep theirs."""
        moments = dict(self.tasks)
        for task in dict.fromkeys(tasks):
            rows = np.array([name == task for name in tasks])
            values = rewards[rows][valid[rows]]
            if not values.size:
                continue
            batch = float(values.mean()), float(np.square(values).mean())
            old = moments.get(task, batch)
            moments[task] = tuple(decay * before + (1 - decay) * now for before, now in zip(old, batch, strict=True))
        return TaskMoments(moments)


def ema_advantages(
    rewards: np.ndarray,
    tasks: Sequence[str],
    moments: TaskMoments,
    decay: float = DECAY,
    valid: np.ndarray | None = None,
) -> tuple[np.ndarray, TaskMoments]:
    """(R − mean of the group) / moving std of the task, clipped to ±5 (eq. 11), and the moments this step leaves.

    The step's own rewards enter the moments before they scale its advantages.

    Args:
      rewards: float [B, G], all prompts of the optimiser step.
      tasks: the task of each prompt, B names.
      moments: those the step before left; `TaskMoments()` at the start.
      decay: weight of the old moments.
      valid: bool [B, G], the rollouts that have a reward; None for all.

    Returns:
      float32 [B, G], 0 for rollouts without reward and groups of equal rewards, and the new moments.

    Raises ConfigError for groups of one rollout, ValueError unless there is one task for each prompt.
    """
    require_groups(np.shape(rewards))
    if len(tasks) != len(rewards):
        raise ValueError(f"{len(tasks)} tasks for {len(rewards)} prompts")
    valid = np.ones(np.shape(rewards), bool) if valid is None else np.asarray(valid, bool)
    rewards = np.where(valid, np.asarray(rewards, np.float64), 0.0)
    moments = moments.updated(rewards, tasks, valid, decay)
    advantages = np.zeros(rewards.shape, np.float32)
    for row, (task, present) in enumerate(zip(tasks, valid, strict=True)):
        values = rewards[row, present]
        if np.ptp(values) if values.size else 0.0:
            advantages[row, present] = np.clip((values - values.mean()) / moments.std(task), -LIMIT, LIMIT)
    return advantages, moments
