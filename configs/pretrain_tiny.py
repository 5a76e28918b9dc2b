"""The base checkpoint of jvlmm/assets/tiny, from scratch: Moving Shapes described, tracked and asked directly.

    jvlmm run configs/pretrain_tiny.py --workdir runs/pretrain-tiny

It learns to see, to name, to find letters, and to explain in plain text; no <think> format is in its data.
"""

from dataclasses import replace

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
LETTERS = Source("stage:data", view="lettered", answer_types=("mcq",))


def evaluate(split: str) -> Evaluate:
    return Evaluate(
        name=split.replace("_", "-"),
        model="stage:tiny",
        sources=(Source("stage:data", split=split, view="open"),),  # in words
        protocol="direct",
        batch_size=64,
        length_buckets=(96,),
        vision=VISION,
        sampling=SamplingOptions(max_tokens=32),
    )


def read(
    name: str,
    model: str,
    sources: tuple[Source, ...],
    steps: int,
    lengths: tuple[int, ...],
    schedule: str = "constant",
    rate: float = 3e-3,
    learn: tuple[str, ...] = (),
) -> SFT:
    """The decoder alone learns to read the tower. Small batches: what it waits for are steps, not examples."""
    return SFT(
        name=name,
        model=model,
        sources=sources,
        style="direct",
        learn=learn,
        steps=steps,
        batch_size=16,
        length_buckets=lengths,
        vision=VISION,
        optimizer=OptimizerOptions(
            learning_rate=rate,
            rule="muon",
            warmup_steps=30,
            schedule=schedule,
            b2=0.98,
            weight_decay=0.05,
            freeze=("vision", "merger"),
        ),
        export_dtype="float32",
    )


def captions(*kinds: str, data: str = "data") -> Source:
    return Source(f"stage:{data}", view="captions", question_types=tuple(f"caption_{kind}" for kind in kinds))


def asked(data: str, repeat: int = 1, types: tuple[str, ...] = ()) -> Source:
    """Questions without options, some about the same clip one after another."""
    return Source(f"stage:{data}", view="open", question_types=types, turns=4, repeat=repeat)


def letters(name: str, model: str) -> SFT:
    """A lesson in letters: nothing else counts."""
    return read(name, model, (LETTERS,), 1100, (96, 128, 160), rate=4e-3, learn=(" A", " B", " C", " D"))


def recipe() -> Recipe:
    clips = MovingShapesOptions(
        seed=1, train_clips=16000, train_images=1600, validation_clips=200, questions_per_clip=6, questions_per_image=3
    )
    none = {f"{split}_{kind}": 0 for split in ("validation", "test", "test_hard") for kind in ("clips", "images")}
    images = MovingShapesOptions(seed=2, train_clips=0, train_images=16000, questions_per_image=4, **none)
    return Recipe(
        name="pretrain-tiny",
        workdir="runs/pretrain-tiny",
        stages=(
            BuildMovingShapes(options=clips),
            BuildMovingShapes(name="images", options=images),
            NewModel(name="new", preset="tiny", vocab_size=1024),
            PretrainTower(
                model="stage:new",
                steps=2500,
                vision=VISION,
                optimizer=OptimizerOptions(learning_rate=4e-3, warmup_steps=50, b2=0.98, weight_decay=0.05),
            ),
            # To copy by induction is what all that follows builds on; letters teach it from text alone.
            letters("letters", "stage:tower"),
            read("names", "stage:letters", (captions("names"), replace(LETTERS, limit=4000)), 300, (96, 128, 160)),
            read("ways", "stage:names", (captions("ways"), asked("data", types=("direction",))), 900, (80, 96)),
            # Which object is meant is learnt from images, where nothing moves and every object is seen once.
            read(
                "objects",
                "stage:ways",
                (captions("objects", "places", data="images"), asked("images", repeat=2)),
                900,
                (96, 128),
            ),
            read(
                "scenes",
                "stage:objects",
                (
                    captions("places", "ways", "objects", "track", "motion", "visible", "events"),
                    asked("data", repeat=3),
                    asked("images"),
                    Source("stage:data", view="explained", turns=2, repeat=2),
                    Source("stage:images", view="explained", turns=2),
                    replace(LETTERS, limit=6000),
                ),
                2800,
                (128, 192, 288),
                schedule="cosine",
            ),
            # By now letters are forgotten; they are learnt anew, and from here on everything is kept together.
            letters("letters-again", "stage:scenes"),
            read(
                "both",
                "stage:letters-again",
                (Source("stage:data", view="explained"), captions("track", "events"), asked("data"), LETTERS),
                450,
                (112, 160, 224),
                schedule="cosine",
                rate=2e-3,
            ),
            read(
                "tiny",
                "stage:both",
                (
                    Source("stage:data", view="explained"),
                    Source("stage:images", view="explained"),
                    captions("places", "ways", "track"),
                    asked("data"),
                    asked("images", repeat=2),
                    LETTERS,
                ),
                1100,
                (112, 160, 224),
                schedule="cosine",
            ),
            evaluate("test"),
            evaluate("test_hard"),
        ),
    )
