"""From video files to a reasoning model in minutes on two CPU cores.

    jvlmm run configs/quickstart.py

Draws Moving Shapes, takes the small base checkpoint that comes with the package, teaches it to think before it
answers (chain-of-thought SFT), and asks it the same test questions before and after. `models/sft` opens in
transformers.
"""

from pathlib import Path

import jvlmm
from jvlmm.data.moving_shapes import MovingShapesOptions
from jvlmm.recipes.evaluating import Evaluate
from jvlmm.recipes.moving_shapes import BuildMovingShapes
from jvlmm.recipes.recipe import Recipe
from jvlmm.recipes.sources import Source, VisionOptions
from jvlmm.recipes.training import SFT
from jvlmm.rollout.sampling import SamplingOptions
from jvlmm.training.optimizer import OptimizerOptions
from jvlmm.video.budget import PixelOptions

BASE = str(Path(jvlmm.__file__).parent / "assets" / "tiny")
VISION = VisionOptions(
    pixels=PixelOptions(min_pixels=784, max_pixels=7056, video_min_pixels=784, video_max_pixels=7056),
    workers=0,  # decode in this process: we drew these files ourselves
    fold=True,
    cache_bytes=2**30,
)


def evaluate(name: str, model: str, protocol: str) -> Evaluate:
    return Evaluate(
        name=name,
        model=model,
        sources=(Source("stage:data", split="test"),),
        protocol=protocol,
        batch_size=64,
        length_buckets=(144,),
        vision=VISION,
        sampling=SamplingOptions(max_tokens=160),
    )


def recipe() -> Recipe:
    return Recipe(
        name="quickstart",
        workdir="runs/quickstart",
        stages=(
            BuildMovingShapes(options=MovingShapesOptions(validation_clips=0, validation_images=0)),
            evaluate("before", BASE, "think"),
            SFT(
                name="sft",
                model=BASE,
                sources=(Source("stage:data"),),
                steps=500,
                batch_size=16,
                length_buckets=(192, 304),
                vision=VISION,
                optimizer=OptimizerOptions(
                    learning_rate=2e-3,
                    rule="muon",
                    warmup_steps=20,
                    b2=0.98,
                    freeze=("vision", "merger"),  # it sees already
                ),
                checkpoint_every=100,
            ),
            evaluate("after", "stage:sft", "think"),
        ),
    )
