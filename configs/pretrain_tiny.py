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


def train(name: str, model: str, sources: tuple[Source, ...], steps: int, **options) -> SFT:
    return SFT(
        name=name,
        model=model,
        sources=sources,
        style="direct",
        steps=steps,
        vision=VISION,
        # The tower moves slowly: before the decoder reads it, its features are noise to be silenced.
        optimizer=OptimizerOptions(
            learning_rate=1e-3,
            warmup_steps=60,
            b2=0.98,
            weight_decay=0.05,
            learning_rates={"vision": 0.3, "merger": 0.1},
        ),
        export_dtype="float32" if name == "see" else "bfloat16",
        **options,
    )


def recipe() -> Recipe:
    data = MovingShapesOptions(seed=1, train_clips=6000, train_images=800, validation_clips=100)
    written = Source("stage:data", view="answer", answer_types=("text", "number", "boxes"))
    return Recipe(
        name="pretrain-tiny",
        workdir="runs/pretrain-tiny",
        stages=(
            BuildMovingShapes(options=data),
            NewModel(name="new", preset="tiny", vocab_size=1024),
            train("see", "stage:new", (written,), steps=900, batch_size=48, length_buckets=(96,)),
            train(
                "tiny",
                "stage:see",
                (Source("stage:data", view="captions"), Source("stage:data", view="answer")),
                steps=900,
                batch_size=32,
                length_buckets=(128, 192, 320),
            ),
            evaluate("test"),
            evaluate("test_hard"),
        ),
    )
