"""GRPO of Qwen2.5-VL-7B on your own questions about videos, for 64 TPU chips, with the constants of Video-R1.

    jvlmm run configs/grpo_qwen2_5_vl_7b.py --workdir runs/grpo-7b grpo.model=DIR grpo.sources.data.path=FILE.jsonl

DIR is a Hugging Face folder of Qwen2.5-VL-7B-Instruct, best after SFT on chains of thought; FILE.jsonl holds neutral
records with a verifiable `answer` (see `jvlmm data check`). Of Video-R1 (Feng et al., arXiv:2503.21776) are groups of 8,
β = 0.04, a learning rate of 1e-6 with cosine decay, gradients clipped to a norm of 5, and its rewards. Prompts may have
16,384 tokens, 96 frames among them, and completions 1,024; Video-R1's 16 frames and 768 tokens are
`grpo.vision.frames.max_frames=16 grpo.sampling.max_tokens=768`. The vision tower and the merger stay as they are, so
that each video is encoded once.

Each device updates one prompt with its group, under FSDP; for decoding, four devices share the model and four prompts.
On another number of devices set `grpo.prompts`, `grpo.update.rows` and `grpo.rollout.rows`, and
`grpo.vision.patch_buckets` in proportion.
"""

from jvlmm.objectives.profiles import PROFILES
from jvlmm.recipes.recipe import Recipe
from jvlmm.recipes.reinforcing import GRPO
from jvlmm.recipes.sources import Source, VisionOptions
from jvlmm.rewards.terms import RewardOptions
from jvlmm.rollout.engine import RolloutOptions
from jvlmm.rollout.sampling import SamplingOptions
from jvlmm.sharding.mesh import MeshOptions
from jvlmm.training.experience import GroupOptions
from jvlmm.training.optimizer import OptimizerOptions
from jvlmm.training.policy import UpdateOptions
from jvlmm.video.budget import PixelOptions
from jvlmm.video.sampling import FrameOptions

PROMPTS = 64
MERGED = 28 * 28  # pixels of one visual token


def recipe() -> Recipe:
    return Recipe(
        name="grpo-qwen2.5-vl-7b",
        workdir="runs/grpo-qwen2_5-vl-7b",
        stages=(
            GRPO(
                name="grpo",
                model="Qwen2.5-VL-7B-Instruct",
                sources=(Source("train.jsonl", name="data"),),
                steps=1000,
                prompts=PROMPTS,
                length_buckets=(4096, 16384),
                group=GroupOptions(size=8),
                objective=PROFILES["grpo"],
                rewards=RewardOptions(preset="video-r1"),
                sampling=SamplingOptions(max_tokens=1024, temperature=1.0),
                rollout=RolloutOptions(rows=PROMPTS, slots=8, mesh=MeshOptions(data=-1, tensor=4)),
                update=UpdateOptions(rows=PROMPTS),
                vision=VisionOptions(
                    frames=FrameOptions(fps=2.0, max_frames=96),
                    pixels=PixelOptions(video_max_pixels=256 * MERGED),
                    workers=8,
                    patch_buckets=tuple(PROMPTS * frames * 4 * 256 for frames in (12, 48)),  # temporal patches a prompt
                ),
                feature_bytes=64 * 2**30,
                optimizer=OptimizerOptions(learning_rate=1e-6, clip_norm=5.0, freeze=("vision", "merger")),
                mesh=MeshOptions(data=1, fsdp=-1),
                remat="full",
            ),
        ),
    )
