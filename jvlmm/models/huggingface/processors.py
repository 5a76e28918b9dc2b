"""The processor files of a checkpoint folder, in every layout that transformers has written.

Until 4.51 one `preprocessor_config.json` was for images and videos; 4.52 to 4.57 write `video_preprocessor_config.json`
beside it; 5 writes `processor_config.json` alone, with `image_processor` and `video_processor` inside, which wins where
it has them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jvlmm.errors import CheckpointError
from jvlmm.models.huggingface.json_file import optional_json

IMAGES, VIDEOS, BOTH = "preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json"

_BICUBIC = 3  # of Pillow
_FIXED = {"do_resize": True, "do_rescale": True, "do_normalize": True, "resample": _BICUBIC, "rescale_factor": 1 / 255}
_CLOSE = 1e-6  # files write factors and means in few digits


@dataclass(frozen=True)
class ProcessorSettings:
    """What one processor of a checkpoint states; nothing where the folder has none."""

    path: Path | None = None  # the file it stands in
    values: Mapping[str, Any] = field(default_factory=dict)

    def bound(self, name: str, edge: str) -> int | None:
        """A bound on pixels, `min_pixels` or `size.shortest_edge`; None where the file states none.

        Raises CheckpointError for a value that is no positive whole number.
        """
        size = self.values.get("size")
        if size is not None and not isinstance(size, Mapping):
            raise _unreadable(self.path, f"size is {size!r}, no object")
        value = self.values.get(name)
        if value is None:
            value = (size or {}).get(edge, (size or {}).get(name))
        if value is not None and (type(value) is not int or value < 1):
            raise _unreadable(self.path, f"{name} is {value!r}, no positive number of pixels")
        return value


def image_settings(directory: str | Path) -> ProcessorSettings:
    """Returns what the checkpoint's image processor states. Raises CheckpointError for a file that is none."""
    return _settings(Path(directory), "image_processor", IMAGES)


def video_settings(directory: str | Path) -> ProcessorSettings:
    """Returns what the checkpoint's video processor states, nothing where it has only one of images."""
    return _settings(Path(directory), "video_processor", VIDEOS)


def normalisation(directory: str | Path, patches: Mapping[str, int]) -> dict[str, tuple[float, ...]]:
    """Returns `image_mean` and `image_std` of the checkpoint, each three floats, where it states them.

    patches: `patch_size`, `temporal_patch_size` and `merge_size` of the model's vision tower.
    Raises CheckpointError where images and videos are to be normalised differently, where frames are to be prepared
    in another way than the tower's (not resized bicubically, scaled by 1/255 or normalised), and where the sizes of
    patches are not those of the model.
    """
    found: dict[str, tuple[float, ...]] = {}
    for settings in (image_settings(directory), video_settings(directory)):
        for name, value in {**_FIXED, **patches}.items():
            stated = settings.values.get(name)
            if stated is not None and not _is_close(stated, value):
                raise CheckpointError(
                    f"{settings.path}: {name} is {stated!r}, the model reads media with {value!r}; take the file that "
                    "belongs to this checkpoint"
                )
        for name in ("image_mean", "image_std"):
            if settings.values.get(name) is None:
                continue
            statistics = _three_floats(settings, name)
            if name in found and not all(map(_is_close, found[name], statistics)):
                raise CheckpointError(
                    f"{settings.path}: {name} of videos is {list(statistics)}, that of images {list(found[name])}; "
                    "one vision tower reads both in the same way: make them equal"
                )
            found.setdefault(name, statistics)
    return found


def _settings(directory: Path, nested: str, name: str) -> ProcessorSettings:
    both = optional_json(directory / BOTH)
    if both.get(nested) is None:
        own = directory / name
        return ProcessorSettings(own, optional_json(own)) if own.is_file() else ProcessorSettings()
    if not isinstance(both[nested], dict):
        raise _unreadable(directory / BOTH, f"{nested} is {both[nested]!r}, no object")
    return ProcessorSettings(directory / BOTH, both[nested])


def _three_floats(settings: ProcessorSettings, name: str) -> tuple[float, ...]:
    value = settings.values[name]
    numbers = value if isinstance(value, list) else [value] * 3
    is_usable = len(numbers) == 3 and all(type(n) in (int, float) for n in numbers)
    if not is_usable or (name == "image_std" and min(numbers) <= 0):
        raise _unreadable(settings.path, f"{name} is {value!r}, not three numbers of the channels")
    return tuple(map(float, numbers))


def _is_close(one: Any, other: Any) -> bool:
    return isinstance(one, (int, float)) and abs(one - other) <= _CLOSE


def _unreadable(path: Path | None, reason: object) -> CheckpointError:
    return CheckpointError(f"{path}: not a processor's configuration ({reason}); restore the file")
