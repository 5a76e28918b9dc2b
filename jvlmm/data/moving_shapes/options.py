"""What a Moving Shapes dataset can be asked to look like."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from jvlmm.errors import ConfigError

STEP_SECONDS = 0.5  # scenes change on this grid only, so any sampling at 2 frames per second sees every state
SPLITS = ("train", "validation", "test", "test_hard")


@dataclass(frozen=True)
class SceneOptions:
    """Difficulty of one family of scenes; lengths in pixels are for a frame of 84 pixels and grow with `size`."""

    min_shapes: int = 1
    max_shapes: int = 3
    lattice_pixels: int = 7  # boxes begin and end on multiples of it: the coarser, the easier they are told
    min_shape_pixels: int = 14
    max_shape_pixels: int = 21
    min_seconds: int = 4  # whole seconds, so that a sampler's even number of frames meets every state
    max_seconds: int = 4
    directions: int = 4  # 4: along the axes; 8: diagonals too
    speeds: tuple[int, ...] = (7, 14)  # pixels per step of half a second
    plain_share: float = 0.35  # share of shapes without any event


HARD_SCENES = SceneOptions(
    min_shapes=3,
    max_shapes=5,
    max_shape_pixels=14,
    min_seconds=6,
    max_seconds=8,
    directions=8,
    plain_share=0.3,
)


@dataclass(frozen=True)
class MovingShapesOptions:
    """Everything that decides the annotations and the pixels; two equal options give equal datasets."""

    seed: int = 0
    size: int = 84  # width and height in pixels, a multiple of 28
    fps: int = 4  # frames per second of the files, even
    crf: int = 12  # H.264 constant rate factor: lower is crisper
    questions_per_clip: int = 4
    questions_per_image: int = 2
    train_clips: int = 2000
    train_images: int = 400
    validation_clips: int = 100
    validation_images: int = 20
    test_clips: int = 300
    test_images: int = 60
    test_hard_clips: int = 150
    test_hard_images: int = 30
    scenes: SceneOptions = field(default_factory=SceneOptions)
    hard_scenes: SceneOptions = HARD_SCENES

    def __post_init__(self) -> None:
        checks = (
            ("size", self.size >= 28 and self.size % 28 == 0, "a positive multiple of 28"),
            ("fps", self.fps >= 2 and self.fps % 2 == 0, "an even number from 2"),
            ("crf", 0 <= self.crf <= 40, "between 0 and 40"),
            ("questions_per_clip", self.questions_per_clip >= 1, "at least 1"),
            ("questions_per_image", self.questions_per_image >= 1, "at least 1"),
            *((name, getattr(self, name) >= 0, "0 or more") for name in _count_fields()),
        )
        for name, holds, allowed in checks:
            _require(name, getattr(self, name), holds, allowed)
        for name in ("scenes", "hard_scenes"):
            _check_scenes(name, getattr(self, name))

    def counts(self, split: str) -> tuple[int, int]:
        """Clips and images of a split."""
        return getattr(self, f"{split}_clips"), getattr(self, f"{split}_images")

    def scenes_of(self, split: str) -> SceneOptions:
        return self.hard_scenes if split == "test_hard" else self.scenes

    def to_dict(self) -> Mapping[str, Any]:
        return asdict(self)


def is_image(row: int, clips: int, images: int) -> bool:
    """Whether scene `row` of a split is an image; images lie evenly among the clips."""
    return (row + 1) * images // (clips + images) > row * images // (clips + images)


def _count_fields() -> tuple[str, ...]:
    return tuple(f"{split}_{kind}" for split in SPLITS for kind in ("clips", "images"))


def _require(name: str, value: object, holds: bool, allowed: str) -> None:
    if not holds:
        raise ConfigError(f"moving shapes: {name}={value!r} is not allowed; use {allowed}")


def _check_scenes(name: str, scenes: SceneOptions) -> None:
    unit, low, high = scenes.lattice_pixels, scenes.min_shape_pixels, scenes.max_shape_pixels
    _require(f"{name}.lattice_pixels", unit, 1 <= unit <= 14, "1 to 14")
    checks = (
        ("min_shapes", 1 <= scenes.min_shapes <= 5, "1 to 5"),
        ("max_shapes", scenes.min_shapes <= scenes.max_shapes <= 5, "min_shapes to 5"),
        ("min_shape_pixels", 9 <= low <= 28 and low % unit == 0, f"9 to 28, a multiple of {unit}"),
        ("max_shape_pixels", low <= high <= 28 and high % unit == 0, f"min_shape_pixels to 28, a multiple of {unit}"),
        ("min_seconds", scenes.min_seconds >= 4 and scenes.min_seconds % 1 == 0, "whole seconds from 4"),
        (
            "max_seconds",
            scenes.min_seconds <= scenes.max_seconds <= 16 and scenes.max_seconds % 1 == 0,
            "min_seconds to 16",
        ),
        ("directions", scenes.directions in (4, 8), "4 or 8"),
        (
            "speeds",
            bool(scenes.speeds) and all(1 <= s <= 14 and s % unit == 0 for s in scenes.speeds),
            f"numbers from 1 to 14, multiples of {unit}",
        ),
        ("plain_share", 0 <= scenes.plain_share < 1, "at least 0 and below 1"),
    )
    for field_name, holds, allowed in checks:
        _require(f"{name}.{field_name}", getattr(scenes, field_name), holds, allowed)
