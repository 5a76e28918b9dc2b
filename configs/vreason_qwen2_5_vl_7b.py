"""Qwen2.5-VL-7B answering with V-Reason, 16 frames a question, one question at a time on one device or four.

    jvlmm run configs/vreason_qwen2_5_vl_7b.py --workdir runs/mine vreason.model=DIR vreason.sources.data.path=FILE
    jvlmm plan configs/vreason_qwen2_5_vl_7b.py --topology v6e:1x1
    jvlmm plan configs/vreason_qwen2_5_vl_7b.py --topology v5e:2x2 vreason.mesh.data=1 vreason.mesh.tensor=4

DIR is a Hugging Face folder of Qwen2.5-VL-7B-Instruct; FILE holds neutral records. Plain decoding is
`vreason.vreason=none`, V-Reason Lite `vreason.vreason.lite.ratio=0.5`.
"""

from jvlmm.recipes.evaluating import Evaluate
from jvlmm.recipes.recipe import Recipe
from jvlmm.recipes.sources import Source, VisionOptions
from jvlmm.rollout.sampling import SamplingOptions
from jvlmm.test_time.vreason import VReasonOptions
from jvlmm.video.budget import PixelOptions
from jvlmm.video.sampling import FrameOptions

MERGED = 28 * 28  # pixels of one visual token
FRAMES, OF_TWO_FRAMES = 16, 256  # visual tokens of two frames


def recipe() -> Recipe:
    return Recipe(
        name="vreason-qwen2.5-vl-7b",
        workdir="runs/vreason-qwen2_5-vl-7b",
        stages=(
            Evaluate(
                name="vreason",
                model="Qwen2.5-VL-7B-Instruct",
                sources=(Source("test.jsonl", name="data"),),
                protocol="think",
                sampling=SamplingOptions(max_tokens=1024),
                batch_size=1,
                length_buckets=(4096,),
                vision=VisionOptions(
                    frames=FrameOptions(num_frames=FRAMES),
                    pixels=PixelOptions(video_max_pixels=OF_TWO_FRAMES * MERGED),
                    patch_buckets=(FRAMES // 2 * OF_TWO_FRAMES * 4,),
                ),
                vreason=VReasonOptions(),
            ),
        ),
    )
