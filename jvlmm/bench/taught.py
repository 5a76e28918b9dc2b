"""A GRPO step, and what a teacher with hindsight adds to it: a pass of its own, weights of tokens, a moving average."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np

from jvlmm.bench.layouts import Shared
from jvlmm.data.example import Example
from jvlmm.data.groups import GroupBatch
from jvlmm.data.prompt_stream import Prompt
from jvlmm.objectives.grpo import GRPOConfig
from jvlmm.objectives.visd import VISDConfig
from jvlmm.training.experience import Group
from jvlmm.training.policy_loss import make_policy_loss
from jvlmm.training.step import LossFn
from jvlmm.training.teaching import Teaching, TeachingOptions

HINDSIGHT = 96  # tokens of every block: an answer, a few times and three sentences of feedback
_TAIL = 5  # tokens that end the user's turn and open the assistant's


class Taught(Shared):
    """Both kinds of step on the same prompt, media and completions; see `worker.Side`."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        tokens = self.prompt.tokens.copy()
        tokens[-_TAIL] = self.config.tokens.eos[0]
        self.prompt = replace(self.prompt, tokens=tokens)
        texts, nothing = ("",) * self.workload.group, np.zeros(0)
        prompt = Prompt(Example(self.prompt.id, "", "", "text"), self.prompt)
        self.groups = (Group(prompt, nothing, tuple(self.rollouts), texts, self.advantages.astype(float), {}),)
        block = np.random.default_rng(2).integers(0, min(self.config.tokens.eos), HINDSIGHT).astype(np.int32)
        hindsight = SimpleNamespace(
            tokenizer=SimpleNamespace(eos_id=self.config.tokens.eos[0]),
            blocks=lambda groups, params, step: ([[block] * len(group.rollouts) for group in groups], {}),
        )
        options = TeachingOptions(VISDConfig(), list_every=0)
        self.teaching = Teaching(options, self.config, self.options(1, self.prompt.length), hindsight)
        self.teacher = self.teaching.begin(self.state.params)
        self.taught: list[GroupBatch] = []

    def loss(self) -> LossFn:
        return make_policy_loss(self.config, GRPOConfig(), lesson=VISDConfig())

    def teach(self) -> int:
        """The teacher's pass; the number of words that it gave of a token."""
        self.taught, _ = self.teaching.teach(self.batches(), self.groups, self.state.params, self.teacher, 1, 1)
        return self.taught[0].teacher.ids.shape[-1]

    def taught_update(self) -> int:
        """An update with weights; the number of tokens that have one."""
        self.state, metrics = self.step(self.state, self.taught)
        jax.block_until_ready(self.state)
        return int(metrics["visd/tokens"])

    def follow(self) -> None:
        """The teacher's way towards the student."""
        self.teacher = self.teaching.follow(self.teacher, self.state.params, 1)
        jax.block_until_ready(self.teacher)
