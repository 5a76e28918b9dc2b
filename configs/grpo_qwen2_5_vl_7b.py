"""GRPO of Qwen2.5-VL-7B on your own questions about videos, for 64 TPU chips, with the constants of Video-R1.

    jvlmm run configs/grpo_qwen2_5_vl_7b.py --workdir runs/grpo-7b grpo.model=DIR grpo.sources.data.path=FILE.jsonl

DIR is a Hugging Face folder of Qwen2.5-VL-7B-Instruct, best after SFT on chains of thought; FILE.jsonl holds neutral
records with a verifiable `answer` (see `jvlmm data check`). Of Video-R1 (Feng et al., arXiv:2503.21776) are groups of
8, β = 0.04, a learning rate of 1e-6 with cosine decay, gradients clipped to a norm of 5, prompts of up to 16,384
tokens, and its rewards. Its 16 frames and 768 tokens of a completion are `grpo.vision.frames.max_frames=16
grpo.sampling.max_tokens=768`; here they are 96 and 1,024, and the tower is not trained.

On another number of devices set `grpo.prompts`, `grpo.update.rows` and `grpo.rollout.rows`, and
`grpo.vision.patch_buckets` in proportion; `jvlmm/recipes/pod_stages.py` says what each device does.
"""

from jvlmm.recipes.pod_stages import policy_7b
from jvlmm.recipes.recipe import Recipe
from jvlmm.rewards.terms import RewardOptions


def recipe() -> Recipe:
    return Recipe(
        name="grpo-qwen2.5-vl-7b",
        workdir="runs/grpo-qwen2_5-vl-7b",
        stages=(policy_7b(RewardOptions(preset="video-r1"), steps=1000),),
    )
