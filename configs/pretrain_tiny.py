"""The base checkpoint of jvlmm/assets/tiny, from scratch: Moving Shapes described, tracked and asked directly.

    jvlmm run configs/pretrain_tiny.py --workdir runs/pretrain-tiny

It learns to see, not to reason: no chain of thought and no <think> format is in its data.
"""

from jvlmm.data.moving_shapes import MovingShapesOptions
from jvlmm.recipes.evaluating import Evaluate
from jvlmm.recipes.moving_shapes import BuildMovingShapes, NewModel
from jvlmm.recipes.recipe import Recipe
from jvlmm.recipes.sources import Source, VisionOptions
from jvlmm.recipes.tower import PretrainTower
from jvlmm.recipes.training import SFT
from jvlmm.rollout.sampling import SamplingOptions
from jvlmm.training.optimizer import OptimizerOptions
from jvlmm.video.budget import PixelOptions

VISION = VisionOptions(
    pixels=PixelOptions(min_pixels=784, max_pixels=7056, video_min_pixels=784, video_max_pixels=7056),
    workers=0,  # decode in this process: we drew these files ourselves
    fold=True,
    cache_bytes=4 * 2**30,
)
BRIEF = ("attribute", "count", "position", "direction", "speed", "order", "event")  # answered in a few words


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
    data = MovingShapesOptions(
        seed=1, train_clips=16000, train_images=1600, validation_clips=200, questions_per_clip=6, questions_per_image=3
    )
    return Recipe(
        name="pretrain-tiny",
        workdir="runs/pretrain-tiny",
        stages=(
            BuildMovingShapes(options=data),
            NewModel(name="new", preset="tiny", vocab_size=1024),
            PretrainTower(
                model="stage:new",
                steps=2500,
                vision=VISION,
                optimizer=OptimizerOptions(learning_rate=4e-3, warmup_steps=50, b2=0.98, weight_decay=0.05),
            ),
            SFT(
                name="names",
                model="stage:tower",
                sources=(Source("stage:data", view="captions", question_types=("caption_names",)),),
                style="direct",
                steps=150,
                batch_size=64,
                length_buckets=(96,),
                vision=VISION,
                optimizer=OptimizerOptions(
                    learning_rate=3e-3,
                    warmup_steps=30,
                    schedule="constant",
                    b2=0.98,
                    weight_decay=0.05,
                    freeze=("vision", "merger"),
                ),
                export_dtype="float32",
            ),
            SFT(
                name="tiny",
                model="stage:names",
                sources=(
                    Source("stage:data", view="captions", turns=2),
                    Source("stage:data", view="named", turns=4, repeat=2),
                    Source("stage:data", view="open", question_types=BRIEF, turns=6, repeat=2),
                ),
                style="direct",
                steps=1600,
                batch_size=32,
                length_buckets=(160, 288),
                vision=VISION,
                optimizer=OptimizerOptions(
                    learning_rate=2e-3,
                    warmup_steps=50,
                    b2=0.98,
                    weight_decay=0.05,
                    learning_rates={"vision": 0.2, "merger": 0.2},
                ),
                checkpoint_every=400,
            ),
            evaluate("test"),
            evaluate("test_hard"),
        ),
    )
