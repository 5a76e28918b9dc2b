"""Does GRPO teach what a short SFT did not? Three seeds on Moving Shapes, on two CPU cores.

    jvlmm run configs/grpo_study.py

Starts from the small base checkpoint that comes with the package, teaches it for a few steps to think before it
answers, and then rewards right answers: 60 steps of 16 questions with 8 rollouts each. Ends with the accuracies on
held-out questions before and after, by question type: mean over the seeds and standard deviation of the gain.
"""

from jvlmm.objectives.grpo import GRPOConfig
from jvlmm.recipes.recipe import Recipe
from jvlmm.recipes.small_stages import study


def recipe() -> Recipe:
    return study("grpo", GRPOConfig())
