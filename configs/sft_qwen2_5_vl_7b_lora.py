"""Chain-of-thought SFT of Qwen2.5-VL-7B with LoRA, on your own examples.

    jvlmm run configs/sft_qwen2_5_vl_7b_lora.py --workdir runs/lora-7b sft.model=DIR sft.sources.data.path=FILE.jsonl

DIR is a Hugging Face folder of Qwen2.5-VL-7B-Instruct; FILE.jsonl holds neutral records with a `response`
(see `jvlmm data check`). Adapters of all projections of the decoder are trained and nothing else;
`models/sft` is the whole model with them merged, `adapters/sft` they alone in the format of PEFT.
"""

from jvlmm.recipes.recipe import Recipe
from jvlmm.recipes.sources import Source, VisionOptions
from jvlmm.recipes.training import SFT
from jvlmm.sharding.mesh import MeshOptions
from jvlmm.training.lora import LoraOptions
from jvlmm.training.optimizer import OptimizerOptions
from jvlmm.video.budget import PixelOptions
from jvlmm.video.sampling import FrameOptions

MERGED = 28 * 28  # pixels of one visual token


def recipe() -> Recipe:
    return Recipe(
        name="sft-qwen2.5-vl-7b-lora",
        workdir="runs/sft-qwen2_5-vl-7b-lora",
        stages=(
            SFT(
                name="sft",
                model="Qwen2.5-VL-7B-Instruct",
                sources=(Source("train.jsonl", name="data"),),
                steps=1000,
                batch_size=32,
                length_buckets=(4096,),
                vision=VisionOptions(
                    frames=FrameOptions(fps=2.0, max_frames=16),
                    pixels=PixelOptions(video_max_pixels=256 * MERGED),
                    workers=8,
                    patch_buckets=(32 * 8 * 4 * 256,),  # 32 rows of 8 temporal patches of 256 visual tokens
                ),
                optimizer=OptimizerOptions(learning_rate=1e-4, warmup_steps=30),
                lora=LoraOptions(rank=16, alpha=32.0, targets=("decoder/layers_*/*_proj",)),
                mesh=MeshOptions(data=1, fsdp=-1),
                remat="full",
            ),
        ),
    )
