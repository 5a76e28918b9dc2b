"""Rewards of a step's groups → advantages and weights, with what the objective remembers of earlier steps."""

from collections import deque
from typing import Any

import numpy as np

from jvlmm.objectives.advantages import difficulty, difficulty_weights, group_advantages
from jvlmm.objectives.grpo import GRPOConfig
from jvlmm.objectives.task_moments import TaskMoments, ema_advantages

_RECENT = 100  # prompts whose mean reward is the usual one (DeepVideo-R1, arXiv:2506.07464)


class AdvantageEstimator:
    """Its state is small and JSON-able; the training loop saves it with the position in the data."""

    def __init__(self, objective: GRPOConfig):
        self._objective = objective
        self._moments = TaskMoments()
        self._recent: deque[float] = deque(maxlen=_RECENT)

    def __call__(
        self, rewards: np.ndarray, tasks: list[str], valid: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """(advantages float32 [B, G], weights of prompts float32 [B]) of rewards float [B, G], tasks B names.

        `valid` bool [B, G] marks the rollouts that have a reward (None: all): the others are in no mean and no moment,
        and their advantage is 0. So are rewards that are not finite, which a divergence taken off them may have made
        so: in the moments one of them would stay for the rest of the run.
        """
        valid = np.isfinite(rewards) & (True if valid is None else valid)
        objective = self._objective
        weights = np.ones(len(rewards), np.float32)
        if objective.difficulty and self._recent:
            harder = difficulty(rewards, float(np.mean(self._recent)), valid)
            weights = np.asarray(difficulty_weights(harder, objective.difficulty))
        self._recent.extend(float(row[of].mean()) for row, of in zip(rewards, valid, strict=True) if of.any())
        if objective.scale == "ema":
            advantages, self._moments = ema_advantages(rewards, tasks, self._moments, objective.ema_decay, valid)
        else:
            advantages = np.asarray(group_advantages(rewards, objective.scale, valid))
        return advantages, weights

    def get_state(self) -> dict[str, Any]:
        return {"moments": {task: list(pair) for task, pair in self._moments.tasks.items()}, "recent": [*self._recent]}

    def set_state(self, state: dict[str, Any]) -> None:
        self._moments = TaskMoments({task: tuple(pair) for task, pair in state["moments"].items()})
        self._recent = deque(state["recent"], maxlen=_RECENT)
