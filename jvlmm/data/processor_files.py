"""How a checkpoint wants its media shown, from its own processor files."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jvlmm.data.timestamps import ALLOWED, tells_times
from jvlmm.errors import CheckpointError
from jvlmm.video.budget import PixelOptions

_IMAGES, _VIDEOS = "preprocessor_config.json", "video_preprocessor_config.json"


def checkpoint_pixels(model_dir: str | Path) -> PixelOptions:
    """The bounds of the checkpoint's image and video processors, and the defaults where it states none.

    A checkpoint may narrow the default budget and not widen it: published ones allow images of 12 million pixels,
    which make 16,000 tokens. Raises CheckpointError for a file that is no processor's configuration.
    """
    default = PixelOptions()
    image, video = (_bounds(Path(model_dir) / name) for name in (_IMAGES, _VIDEOS))
    low, video_low = image.get("min", default.min_pixels), video.get("min", default.video_min_pixels)
    return PixelOptions(
        min_pixels=low,
        max_pixels=max(low, min(image.get("max", default.max_pixels), default.max_pixels)),
        video_min_pixels=video_low,
        video_max_pixels=max(video_low, min(video.get("max", default.video_max_pixels), default.video_max_pixels)),
    )


def checkpoint_timestamps(model_dir: str | Path) -> str:
    """The form in which the checkpoint learnt to be told the times of a video, "" where it states none.

    Raises CheckpointError for a form that tells no time, or that would fill the memory with one.
    """
    path = Path(model_dir) / _VIDEOS
    form = _read(path).get("timestamps", "")
    if not isinstance(form, str) or (form and not tells_times(form)):
        raise CheckpointError(f"{path}: timestamps is {str(form)[:80]!r}; allowed: {ALLOWED}, or nothing")
    return form


def write_timestamps(model_dir: str | Path, form: str) -> None:
    """State that form in the checkpoint's video processor."""
    path = Path(model_dir) / _VIDEOS
    path.write_text(json.dumps({**_read(path), "timestamps": form}, indent=2) + "\n", encoding="utf-8")


def _bounds(path: Path) -> Mapping[str, int]:
    """`min` and `max` pixels of a processor file, in either of the two ways transformers writes them."""
    config = _read(path)
    try:
        size = config.get("size") or {}
        found = {
            "min": config.get("min_pixels") or size.get("shortest_edge"),
            "max": config.get("max_pixels") or size.get("longest_edge"),
        }
        return {name: int(value) for name, value in found.items() if value is not None}
    except (ValueError, TypeError, AttributeError) as error:
        raise _unreadable(path, error) from error


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _unreadable(path, error) from error
    if not isinstance(config, dict):
        raise _unreadable(path, f"a JSON {type(config).__name__}")
    return config


def _unreadable(path: Path, reason: object) -> CheckpointError:
    return CheckpointError(f"{path}: not a processor's configuration ({reason}); restore the file")
