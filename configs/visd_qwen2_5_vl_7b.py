"""VISD of Qwen2.5-VL-7B: GRPO whose tokens are weighed by a teacher with hindsight, for 16 TPU chips.

    jvlmm run configs/visd_qwen2_5_vl_7b.py --workdir runs/visd-7b grpo.model=DIR grpo.sources.data.path=FILE.jsonl

DIR is a Hugging Face folder of Qwen2.5-VL-7B-Instruct, best after SFT on grounded chains of thought; FILE.jsonl holds
neutral records with a verifiable `answer` and, where they are known, the key frames in `meta.evidence`. The constants
are those of the authors' released code (arXiv:2605.06094): 16 prompts of 4 rollouts a step, 2,326 steps, of which the
teacher is there for 600; an average over 100 updates in float32; completions of 768 tokens at a temperature of 1 from
the likeliest 95 %; up to 16 frames at 2 a second of 128 visual tokens; a learning rate of 1e-6 with cosine decay,
weight decay of 0.01, gradients clipped to a norm of 5; no reference model. Two frames that follow one another are read
as one step of the video, with the time of the first said before it, where the authors give every frame as an image.
The judge is that of rules; `hindsight.judge` of the teaching options takes an `EndpointOptions` instead.
"""

from jvlmm.objectives.grpo import GRPOConfig
from jvlmm.recipes.pod_stages import policy_7b
from jvlmm.recipes.recipe import Recipe
from jvlmm.rewards.terms import RewardOptions
from jvlmm.training.experience import GroupOptions
from jvlmm.training.teaching import TEACHING_PROFILES


def recipe() -> Recipe:
    return Recipe(
        name="visd-qwen2.5-vl-7b",
        workdir="runs/visd-qwen2_5-vl-7b",
        stages=(
            policy_7b(
                RewardOptions(preset="visd"),
                steps=2326,
                max_frames=16,
                group=GroupOptions(size=4),
                objective=GRPOConfig(),
                prompts=16,
                max_tokens=768,
                tokens_of_frames=128,
                top_p=0.95,
                timestamps="{:.1f}s: ",
                teaching=TEACHING_PROFILES["visd_release"],
            ),
        ),
    )
