"""The study of `grpo_study.py` with T-GRPO: a bonus for right answers where the order of frames does not hurt.

    jvlmm run configs/t_grpo_study.py

Half a group of further rollouts sees each clip's frames shuffled, as in Video-R1's code (Feng et al.,
arXiv:2503.21776).
"""

from jvlmm.objectives.grpo import GRPOConfig
from jvlmm.recipes.recipe import Recipe
from jvlmm.recipes.small_stages import study
from jvlmm.training.experience import GroupOptions
from jvlmm.training.frame_order import FrameOrder


def recipe() -> Recipe:
    return study("t_grpo", GRPOConfig(), group=GroupOptions(size=8, frame_order=FrameOrder(shuffled=4)))
