"""Chain-of-thought SFT of Qwen2.5-VL-7B on your own examples of up to 16,384 tokens each, for 64 TPU chips.

    jvlmm run configs/sft_qwen2_5_vl_7b_16k.py --workdir runs/sft-7b-16k sft.model=DIR sft.sources.data.path=FILE.jsonl

DIR is a Hugging Face folder of Qwen2.5-VL-7B-Instruct; FILE.jsonl holds neutral records with a `response`
(see `jvlmm data check`). Split over all devices with FSDP; the vision tower stays as it is. Each device has one row of
at most 96 frames; on another number of devices set `sft.batch_size`, and `sft.vision.patch_buckets` in proportion.
"""

from jvlmm.recipes.recipe import Recipe
from jvlmm.recipes.sources import Source, VisionOptions
from jvlmm.recipes.training import SFT
from jvlmm.sharding.mesh import MeshOptions
from jvlmm.training.optimizer import OptimizerOptions
from jvlmm.video.budget import PixelOptions
from jvlmm.video.sampling import FrameOptions

ROWS = 64
MERGED = 28 * 28  # pixels of one visual token


def recipe() -> Recipe:
    return Recipe(
        name="sft-qwen2.5-vl-7b-16k",
        workdir="runs/sft-qwen2_5-vl-7b-16k",
        stages=(
            SFT(
                name="sft",
                model="Qwen2.5-VL-7B-Instruct",
                sources=(Source("train.jsonl", name="data"),),
                steps=1000,
                batch_size=ROWS,
                length_buckets=(16384,),
                vision=VisionOptions(
                    frames=FrameOptions(fps=2.0, max_frames=96),
                    pixels=PixelOptions(video_max_pixels=256 * MERGED),
                    workers=8,
                    patch_buckets=(ROWS * 48 * 4 * 256,),  # 48 temporal patches a row of 256 visual tokens
                ),
                optimizer=OptimizerOptions(learning_rate=1e-5, warmup_steps=30, weight_decay=0.01, freeze=("vision",)),
                mesh=MeshOptions(data=1, fsdp=-1),
                remat="full",
            ),
        ),
    )
