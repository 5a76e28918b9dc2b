"""The pixel budget a checkpoint asks for, from its own processor files."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jvlmm.errors import CheckpointError
from jvlmm.video.budget import PixelOptions


def checkpoint_pixels(model_dir: str | Path) -> PixelOptions:
    """The bounds of the checkpoint's image and video processors, and the defaults where it states none.

    A checkpoint may narrow the default budget and not widen it: published ones allow images of 12 million pixels,
    which make 16,000 tokens. Raises CheckpointError for a file that is no processor's configuration.
    """
    default = PixelOptions()
    image = _bounds(Path(model_dir) / "preprocessor_config.json")
    video = _bounds(Path(model_dir) / "video_preprocessor_config.json")
    low, video_low = image.get("min", default.min_pixels), video.get("min", default.video_min_pixels)
    return PixelOptions(
        min_pixels=low,
        max_pixels=max(low, min(image.get("max", default.max_pixels), default.max_pixels)),
        video_min_pixels=video_low,
        video_max_pixels=max(video_low, min(video.get("max", default.video_max_pixels), default.video_max_pixels)),
    )


def _bounds(path: Path) -> Mapping[str, int]:
    """`min` and `max` pixels of a processor file, in either of the two ways transformers writes them."""
    if not path.is_file():
        return {}
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        size = config.get("size") or {}
        found = {
            "min": config.get("min_pixels") or size.get("shortest_edge"),
            "max": config.get("max_pixels") or size.get("longest_edge"),
        }
        return {name: int(value) for name, value in found.items() if value is not None}
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: not a processor's configuration ({error}); restore the file") from error
