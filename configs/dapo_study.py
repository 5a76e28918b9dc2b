"""The study of `grpo_study.py` with DAPO: a wider clip upwards, a mean over tokens, dynamic sampling.

    jvlmm run configs/dapo_study.py

Groups whose rewards are all equal are replaced by others, up to twice a step (Yu et al., arXiv:2503.14476).
"""

from jvlmm.objectives.profiles import PROFILES
from jvlmm.recipes.recipe import Recipe
from jvlmm.recipes.small_stages import study
from jvlmm.training.experience import GroupOptions


def recipe() -> Recipe:
    return study("dapo", PROFILES["dapo"], group=GroupOptions(size=8, resample_rounds=2, skip_truncated=True))
