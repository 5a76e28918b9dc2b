"""The base checkpoint of jvlmm/assets/tiny, from scratch: Moving Shapes described, tracked and asked directly.

    jvlmm run configs/pretrain_tiny.py --workdir runs/pretrain-tiny

It learns to see, not to reason: no chain of thought and no <think> format is in its data.
"""

from jvlmm.data.moving_shapes import MovingShapesOptions
from jvlmm.recipes.evaluating import Evaluate
from jvlmm.recipes.moving_shapes import BuildMovingShapes, NewModel
from jvlmm.recipes.recipe import Recipe
from jvlmm.recipes.sources import Source, VisionOptions
from jvlmm.recipes.training import SFT
from jvlmm.rollout.sampling import SamplingOptions
from jvlmm.training.optimizer import OptimizerOptions
from jvlmm.video.budget import PixelOptions

VISION = VisionOptions(
    pixels=PixelOptions(min_pixels=784, max_pixels=3136, video_min_pixels=784, video_max_pixels=3136),
    workers=0,  # decode in this process: we drew these files ourselves
    fold=True,
    cache_bytes=2 * 2**30,
)


def evaluate(split: str) -> Evaluate:
    return Evaluate(
        name=split.replace("_", "-"),
        model="stage:tiny",
        sources=(Source("stage:data", split=split),),
        protocol="direct",
        batch_size=64,
        length_buckets=(96, 160),
        vision=VISION,
        sampling=SamplingOptions(max_tokens=32),
    )


def recipe() -> Recipe:
    return Recipe(
        name="pretrain-tiny",
        workdir="runs/pretrain-tiny",
        stages=(
            BuildMovingShapes(
                options=MovingShapesOptions(seed=1, train_clips=16000, train_images=2000, validation_clips=300)
            ),
            NewModel(name="new", preset="tiny", vocab_size=1024),
            SFT(
                name="tiny",
                model="stage:new",
                sources=(Source("stage:data", view="captions"), Source("stage:data", view="answer")),
                style="direct",
                steps=1250,
                batch_size=48,
                length_buckets=(96, 128, 192, 320),
                vision=VISION,
                optimizer=OptimizerOptions(learning_rate=1.5e-3, warmup_steps=200, b2=0.98, weight_decay=0.05),
                checkpoint_every=250,
            ),
            evaluate("test"),
            evaluate("test_hard"),
        ),
    )
