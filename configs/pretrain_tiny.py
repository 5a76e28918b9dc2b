"""The base checkpoint of jvlmm/assets/tiny, from scratch: Moving Shapes described, tracked and asked directly.

    jvlmm run configs/pretrain_tiny.py --workdir runs/pretrain-tiny

It learns to see, to name, to find letters, and to explain in plain text; no <think> format is in its data.
"""

from dataclasses import replace

from jvlmm.data.moving_shapes import MovingShapesOptions
from jvlmm.recipes.evaluating import Evaluate
from jvlmm.recipes.moving_shapes import AddNeighbourLayer, BuildMovingShapes, NewModel
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
SEE = OptimizerOptions(
    learning_rate=1e-3,
    warmup_steps=30,
    schedule="constant",
    b2=0.98,
    weight_decay=0.05,
    freeze=("vision", "merger"),
)
COPY = replace(SEE, rule="muon", learning_rate=2e-3)
DIRECT = ("direction", "speed", "order", "event")  # asked for the bare answer to the last


def evaluate(split: str) -> Evaluate:
    return Evaluate(
        name=split.replace("_", "-"),
        model="stage:tiny",
        sources=(Source("stage:data", split=split, view="open", question_types=DIRECT),),
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
    optimizer: OptimizerOptions = SEE,
    batch_size: int = 16,
) -> SFT:
    """The decoder alone learns to read the tower. Small batches: what it waits for are steps, not examples."""
    return SFT(
        name=name,
        model=model,
        sources=sources,
        style="direct",
        steps=steps,
        batch_size=batch_size,
        length_buckets=lengths,
        vision=VISION,
        optimizer=optimizer,
        export_dtype="float32",
    )


def captions(*kinds: str, data: str = "data") -> Source:
    return Source(f"stage:{data}", view="captions", question_types=tuple(f"caption_{kind}" for kind in kinds))


def asked(data: str, repeat: int = 1, types: tuple[str, ...] = ()) -> Source:
    """Questions without options, some about the same clip one after another."""
    return Source(f"stage:{data}", view="open", question_types=types, turns=4, repeat=repeat)


def explained(
    data: str, repeat: int = 1, types: tuple[str, ...] = (), turns: int = 1, limit: int | None = None
) -> Source:
    return Source(f"stage:{data}", view="explained", question_types=types, turns=turns, repeat=repeat, limit=limit)


def letters(limit: int | None = None, types: tuple[str, ...] = ()) -> Source:
    """Lessons in letters, without media."""
    return Source("stage:data", view="lettered", question_types=types, answer_types=("mcq",), limit=limit)


def pairs(limit: int) -> Source:
    """Lessons in letters of options that share their words."""
    return Source("stage:data", view="lettered_pairs", limit=limit)


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
            # To see comes first: decoders that learnt letters before did not come to read motion.
            read("names", "stage:tower", (captions("names"),), 500, (96, 112)),
            read("ways", "stage:names", (captions("ways"), asked("data", types=("direction",))), 2000, (96, 112)),
            # Which object is meant is learnt from images, where nothing moves and every object is seen once.
            read(
                "objects",
                "stage:ways",
                (captions("objects", "places", data="images"), asked("images", repeat=2)),
                1500,
                (96, 128),
            ),
            read(
                "scenes",
                "stage:objects",
                (
                    captions("places", "ways", "objects", "track", "motion", "visible", "events"),
                    asked("data", repeat=3),
                    asked("images"),
                ),
                2800,
                (128, 176, 240),
                replace(SEE, schedule="cosine"),
            ),
            # To copy: a layer that knows neighbours, then letters of options from text alone, while it goes on seeing.
            AddNeighbourLayer(model="stage:scenes"),
            read(
                "letters",
                "stage:neighbours",
                (letters(), captions("ways", "places", "names"), asked("data"), asked("images")),
                800,
                (112, 144, 176),
                COPY,
            ),
            # To say why: thoughts as plain text, in which letters follow words.
            read(
                "explanations",
                "stage:letters",
                (
                    captions("places", "ways", "track", "visible", "events"),
                    captions("ways"),
                    asked("data"),
                    asked("data", repeat=2, types=DIRECT),
                    asked("images"),
                    explained("data", repeat=2),
                    explained("data", types=("event", "order", "speed", "span")),
                    explained("images", turns=2),
                    letters(50000),
                ),
                1500,
                (144, 208, 304),
                replace(COPY, schedule="cosine"),
            ),
            # What an object does at every step, from which spans and orders follow: to look at a chosen time.
            read(
                "timelines",
                "stage:explanations",
                (
                    *4 * (captions("timeline"),),
                    captions("visible"),
                    captions("ways"),
                    asked("data", types=("boxes", "count", "span", "event", "direction", "order")),
                    letters(4000),
                    pairs(5000),
                ),
                1800,
                (112, 144, 176, 240),
                COPY,
            ),
            # Options of two words, which neither word alone tells: of text alone, for mixed with more it is not learnt.
            read(
                "pairs",
                "stage:timelines",
                (pairs(30000), letters(), letters(types=("position",))),
                500,
                (112, 144, 176, 240),
                COPY,
                batch_size=32,
            ),
            read(
                "reasons",
                "stage:pairs",
                (
                    *3 * (captions("timeline"),),
                    captions("track", "visible", "ways"),
                    asked("data", types=("direction", "speed")),
                    explained("data"),
                    explained("data", repeat=2, types=("event", "order", "span")),
                    explained("data", repeat=2, types=("span",)),
                    explained("images", turns=2, limit=30000),
                    letters(6000),
                    pairs(9000),
                ),
                2200,
                (144, 208, 272, 352),
                replace(COPY, schedule="cosine"),
            ),
            # What timelines have pushed aside: the colour of a shape told by its kind.
            read(
                "tiny",
                "stage:reasons",
                (
                    captions("timeline"),
                    explained("data"),
                    explained("data", repeat=4, types=("attribute",)),
                    explained("data", types=("order", "event", "boxes", "count")),
                    explained("data", types=("attribute", "order"), turns=2),
                    explained("images", turns=2, limit=30000),
                    pairs(5000),
                ),
                750,
                (144, 208, 272, 352),
                replace(COPY, schedule="cosine", learning_rate=1.5e-3),
            ),
            evaluate("test"),
            evaluate("test_hard"),
        ),
    )
