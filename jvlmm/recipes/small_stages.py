"""Stages on Moving Shapes that two CPU cores can do: of the quickstart, and of studies over several seeds."""

from pathlib import Path
from typing import Any, Literal

import jvlmm
from jvlmm.data.moving_shapes import MovingShapesOptions
from jvlmm.objectives.grpo import GRPOConfig
from jvlmm.recipes.comparing import Compare
from jvlmm.recipes.evaluating import Evaluate
from jvlmm.recipes.moving_shapes import BuildMovingShapes
from jvlmm.recipes.recipe import Recipe
from jvlmm.recipes.reinforcing import GRPO
from jvlmm.recipes.sources import Source, VisionOptions
from jvlmm.recipes.training import SFT
from jvlmm.rollout.engine import RolloutOptions
from jvlmm.rollout.sampling import SamplingOptions
from jvlmm.training.experience import GroupOptions
from jvlmm.training.optimizer import OptimizerOptions
from jvlmm.training.policy import UpdateOptions
from jvlmm.video.budget import PixelOptions

BASE = str(Path(jvlmm.__file__).parent / "assets" / "tiny")
VISION = VisionOptions(
    pixels=PixelOptions(min_pixels=784, max_pixels=7056, video_min_pixels=784, video_max_pixels=7056),
    workers=0,  # decode in this process: we drew these files ourselves
    fold=True,
    cache_bytes=2**30,
)
TOWER = ("vision", "merger")  # it sees already
MAX_TOKENS = 160


def study(name: str, objective: GRPOConfig, seeds: int = 3, sft_steps: int = 60, **options: Any) -> Recipe:
    """Data, SFT, and for every seed GRPO and the held-out questions again; `options` are those of `policy`."""
    policies = [policy(f"{name}_{seed}", "stage:sft", objective, seed=seed, **options) for seed in range(seeds)]
    after = [ask(f"after_{seed}", f"stage:{one.name}") for seed, one in enumerate(policies)]
    return Recipe(
        name=f"{name}-study",
        workdir=f"runs/{name}-study",
        stages=(
            BuildMovingShapes(options=MovingShapesOptions(validation_clips=0, validation_images=0)),
            thoughts("sft", BASE, sft_steps),
            ask("before", "stage:sft"),
            *(stage for pair in zip(policies, after, strict=True) for stage in pair),
            Compare(after=tuple(stage.name for stage in after)),
        ),
    )


def ask(name: str, model: str, question_types: tuple[str, ...] = (), hinted: bool = False) -> Evaluate:
    """All test questions, greedily, in the reasoning format; `hinted` as a teacher reads them (see `Source.view`)."""
    return Evaluate(
        name=name,
        model=model,
        sources=(Source("stage:data", "test", _view(hinted), question_types),),
        protocol="think",
        batch_size=64,
        length_buckets=(304 if hinted else 144,),
        vision=VISION,
        sampling=SamplingOptions(max_tokens=MAX_TOKENS),
    )


def thoughts(name: str, model: str, steps: int, hinted: bool = False) -> SFT:
    """To think before it answers; `hinted` questions are asked as a teacher reads them."""
    return SFT(
        name=name,
        model=model,
        sources=(Source("stage:data", view=_view(hinted)),),
        steps=steps,
        batch_size=16,
        length_buckets=(192, 304, 448) if hinted else (192, 304),
        vision=VISION,
        optimizer=OptimizerOptions(learning_rate=2e-3, rule="muon", warmup_steps=20, b2=0.98, freeze=TOWER),
        checkpoint_every=100,
    )


def _view(hinted: bool) -> Literal["hinted", "response"]:
    return "hinted" if hinted else "response"


def policy(
    name: str,
    model: str,
    objective: GRPOConfig,
    steps: int = 60,
    prompts: int = 16,
    group: GroupOptions = GroupOptions(size=8),  # noqa: B008
    learning_rate: float = 2e-4,
    seed: int | None = None,
    question_types: tuple[str, ...] = (),
    **options: Any,
) -> GRPO:
    """Rewards for right answers in the right format; `options` are further ones of the stage.

    Rollouts are drawn at a temperature of 0.6, at which this small model's thoughts hold together.
    """
    return GRPO(
        name=name,
        model=model,
        sources=(Source("stage:data", question_types=question_types),),
        steps=steps,
        prompts=prompts,
        length_buckets=(144,),
        group=group,
        objective=objective,
        sampling=SamplingOptions(max_tokens=MAX_TOKENS, temperature=0.6),
        rollout=RolloutOptions(rows=prompts, slots=group.size),
        update=UpdateOptions(rows=prompts),
        vision=VISION,
        feature_bytes=2**28,
        optimizer=OptimizerOptions(learning_rate=learning_rate, schedule="constant", warmup_steps=5, freeze=TOWER),
        checkpoint_every=20,
        seed=seed,
        **options,
    )
