"""The stage that the recipes for one GPU share."""

from jvlmm.recipes.sources import Source, VisionOptions
from jvlmm.recipes.training import SFT
from jvlmm.training.lora import LoraOptions
from jvlmm.training.optimizer import OptimizerOptions
from jvlmm.video.budget import MERGED_PATCH, PixelOptions
from jvlmm.video.sampling import FrameOptions


def lora_on_one_gpu(model: str) -> SFT:
    """LoRA of the decoder's projections on rows of 4,096 tokens: videos of up to 16 frames of 256 visual tokens.

    A row a device step and 32 steps an update need the least memory; `jvlmm plan` tells how many rows fit.
    """
    return SFT(
        name="sft",
        model=model,
        sources=(Source("train.jsonl", name="data"),),
        steps=1000,
        batch_size=1,
        accumulation=32,
        length_buckets=(4096,),
        vision=VisionOptions(
            frames=FrameOptions(fps=2.0, max_frames=16),
            pixels=PixelOptions(video_max_pixels=256 * MERGED_PATCH**2),
            patch_buckets=(8 * 4 * 256,),  # a row's: 8 temporal patches of 256 visual tokens of 4 patches
        ),
        optimizer=OptimizerOptions(learning_rate=1e-4, warmup_steps=30),
        lora=LoraOptions(rank=16, alpha=32.0, targets=("decoder/layers_*/*_proj",)),
        remat="full",
    )
