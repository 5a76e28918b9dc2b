"""T-GRPO of Qwen2.5-VL-7B: GRPO with a bonus for answers that need the order of the frames, for 64 TPU chips.

    jvlmm run configs/t_grpo_qwen2_5_vl_7b.py --workdir runs/t-grpo-7b grpo.model=DIR grpo.sources.data.path=FILE.jsonl

As `grpo_qwen2_5_vl_7b.py`, with half a group of further rollouts of each video on shuffled frames: where the rollouts
on ordered frames are at least 0.8 times as accurate, right ones get 0.3 more, as in Video-R1's code (Feng et al.,
arXiv:2503.21776). The paper's own form is `grpo.group.frame_order.form=paper`.
"""

from jvlmm.recipes.pod_stages import policy_7b
from jvlmm.recipes.recipe import Recipe
from jvlmm.rewards.terms import RewardOptions
from jvlmm.training.experience import GroupOptions
from jvlmm.training.frame_order import FrameOrder


def recipe() -> Recipe:
    group = GroupOptions(size=8, frame_order=FrameOrder(form="video-r1", shuffled=4, weight=0.3))
    return Recipe(
        name="t-grpo-qwen2.5-vl-7b",
        workdir="runs/t-grpo-qwen2_5-vl-7b",
        stages=(policy_7b(RewardOptions(preset="video-r1"), steps=1000, group=group),),
    )
