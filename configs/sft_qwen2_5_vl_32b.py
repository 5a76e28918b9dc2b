"""Chain-of-thought SFT of Qwen2.5-VL-32B on your own examples, for 512 TPU chips.

    jvlmm run configs/sft_qwen2_5_vl_32b.py --workdir runs/sft-32b sft.model=DIR sft.sources.data.path=FILE.jsonl

DIR is a Hugging Face folder of Qwen2.5-VL-32B-Instruct; FILE.jsonl holds neutral records with a `response`
(see `jvlmm data check`). The vision tower stays as it is;
FSDP over 256 pairs of devices that split heads, MLPs and vocabulary.
"""

from jvlmm.recipes.recipe import Recipe
from jvlmm.recipes.sources import Source, VisionOptions
from jvlmm.recipes.training import SFT
from jvlmm.sharding.mesh import MeshOptions
from jvlmm.training.optimizer import OptimizerOptions
from jvlmm.video.budget import PixelOptions
from jvlmm.video.sampling import FrameOptions

ROWS = 256
MERGED = 28 * 28  # pixels of one visual token


def recipe() -> Recipe:
    return Recipe(
        name="sft-qwen2.5-vl-32b",
        workdir="runs/sft-qwen2_5-vl-32b",
        stages=(
            SFT(
                name="sft",
                model="Qwen2.5-VL-32B-Instruct",
                sources=(Source("train.jsonl", name="data"),),
                steps=1000,
                batch_size=ROWS,
                length_buckets=(4096,),
                vision=VisionOptions(
                    frames=FrameOptions(fps=2.0, max_frames=16),
                    pixels=PixelOptions(video_max_pixels=256 * MERGED),
                    workers=8,
                    patch_buckets=(ROWS * 8 * 4 * 256,),  # 8 temporal patches a row of 256 visual tokens
                ),
                optimizer=OptimizerOptions(learning_rate=1e-5, warmup_steps=30, weight_decay=0.01, freeze=("vision",)),
                mesh=MeshOptions(data=1, fsdp=-1, tensor=2),
                remat="full",
            ),
        ),
    )
