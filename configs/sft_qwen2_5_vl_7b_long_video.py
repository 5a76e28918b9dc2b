"""Chain-of-thought SFT of Qwen2.5-VL-7B on one long video a step, of up to 262,144 tokens, for 512 TPU chips.

    jvlmm run configs/sft_qwen2_5_vl_7b_long_video.py --workdir runs/long sft.model=DIR sft.sources.data.path=FILE.jsonl

DIR is a Hugging Face folder of Qwen2.5-VL-7B-Instruct; FILE.jsonl holds neutral records with a `response`
(see `jvlmm data check`). All devices share the row and the frames of its video, and split the parameters in the same
way; the vision tower stays as it is.
"""

from jvlmm.recipes.recipe import Recipe
from jvlmm.recipes.sources import Source, VisionOptions
from jvlmm.recipes.training import SFT
from jvlmm.sharding.mesh import MeshOptions
from jvlmm.sharding.rules import ShardingRules
from jvlmm.training.optimizer import OptimizerOptions
from jvlmm.video.budget import PixelOptions
from jvlmm.video.limits import Limits
from jvlmm.video.sampling import FrameOptions

MERGED = 28 * 28  # pixels of one visual token


def recipe() -> Recipe:
    return Recipe(
        name="sft-qwen2.5-vl-7b-long-video",
        workdir="runs/sft-qwen2_5-vl-7b-long-video",
        stages=(
            SFT(
                name="sft",
                model="Qwen2.5-VL-7B-Instruct",
                sources=(Source("train.jsonl", name="data"),),
                steps=1000,
                batch_size=1,
                length_buckets=(262144,),
                vision=VisionOptions(
                    frames=FrameOptions(fps=2.0, max_frames=1024),
                    pixels=PixelOptions(video_max_pixels=480 * MERGED, video_total_pixels=512 * 480 * MERGED),
                    limits=Limits(deadline_s=300),
                    workers=8,
                    patch_buckets=(512 * 4 * 480,),  # 512 temporal patches of 480 visual tokens
                ),
                optimizer=OptimizerOptions(learning_rate=1e-5, warmup_steps=30, weight_decay=0.01, freeze=("vision",)),
                mesh=MeshOptions(data=1, context=-1),
                rules=ShardingRules(embed=("context",), vision_embed=(), vision_merged=("context",)),
                remat="full",
            ),
        ),
    )
