"""GRPO of Qwen2.5-VL-7B on TPU chips, as recipes share it."""

from typing import Any

from jvlmm.objectives.grpo import GRPOConfig
from jvlmm.objectives.profiles import PROFILES
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
TOKENS_OF_FRAMES = 256  # visual tokens of two frames
PIXELS = 28 * 28  # of a visual token


def policy_7b(
    rewards: RewardOptions,
    steps: int,
    max_frames: int = 96,
    group: GroupOptions = GroupOptions(size=8),  # noqa: B008
    objective: GRPOConfig = PROFILES["grpo"],
    prompts: int = PROMPTS,
    max_tokens: int = 1024,
    tokens_of_frames: int = TOKENS_OF_FRAMES,
    top_p: float = 1.0,
    timestamps: str | None = None,
    **options: Any,
) -> GRPO:
    """So many prompts a step of up to 16,384 tokens and `max_frames` frames, with completions of up to `max_tokens`.

    Each device updates one prompt with its group, under FSDP; for decoding, four devices share the model and the rows
    of four prompts. The vision tower and the merger stay as they are, so that each video is encoded once. `options` are
    further ones of the stage.
    """
    sizes = sorted({min(24, max_frames), max_frames})
    patches = tuple(prompts * (frames // 2) * 4 * tokens_of_frames for frames in sizes)
    return GRPO(
        name="grpo",
        model="Qwen2.5-VL-7B-Instruct",
        sources=(Source("train.jsonl", name="data"),),
        steps=steps,
        prompts=prompts,
        length_buckets=(4096, 16384),
        group=group,
        objective=objective,
        rewards=rewards,
        sampling=SamplingOptions(max_tokens=max_tokens, temperature=1.0, top_p=top_p),
        rollout=RolloutOptions(rows=prompts, slots=group.size, mesh=MeshOptions(data=-1, tensor=4)),
        update=UpdateOptions(rows=prompts),
        vision=VisionOptions(
            frames=FrameOptions(fps=2.0, max_frames=max_frames),
            pixels=PixelOptions(video_max_pixels=tokens_of_frames * PIXELS),
            timestamps=timestamps,
            patch_buckets=patches,
        ),
        feature_bytes=64 * 2**30,
        optimizer=OptimizerOptions(learning_rate=1e-6, weight_decay=0.01, clip_norm=5.0, freeze=("vision", "merger")),
        mesh=MeshOptions(data=1, fsdp=-1),
        remat="full",
        **options,
    )
