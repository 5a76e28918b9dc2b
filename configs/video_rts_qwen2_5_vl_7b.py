"""Video-RTS of Qwen2.5-VL-7B: pure reinforcement learning on few examples, without SFT before it, for 64 TPU chips.

    jvlmm run configs/video_rts_qwen2_5_vl_7b.py --workdir runs/rts-7b grpo.model=DIR grpo.sources.data.path=FILE.jsonl

DIR is a Hugging Face folder of Qwen2.5-VL-7B-Instruct as published; FILE.jsonl holds about 6,000 neutral records with a
verifiable `answer`, of which 94 steps of 64 see each once. Rewards are accuracy and format alike, β is 0.04 (Wang et
al., arXiv:2507.06485).
"""

from jvlmm.recipes.pod_stages import policy_7b
from jvlmm.recipes.recipe import Recipe
from jvlmm.rewards.terms import RewardOptions, RewardTerm

EXAMPLES, A_STEP = 6000, 64


def recipe() -> Recipe:
    rewards = RewardOptions(preset=None, terms=(RewardTerm("accuracy", "accuracy"), RewardTerm("format", "format")))
    return Recipe(
        name="video-rts-qwen2.5-vl-7b",
        workdir="runs/video-rts-qwen2_5-vl-7b",
        stages=(policy_7b(rewards, steps=-(-EXAMPLES // A_STEP)),),
    )
