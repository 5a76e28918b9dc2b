"""How a checkpoint wants questions and media shown: its processor files, and the file that jvlmm leaves beside them.

`jvlmm_processing.json` says what training did: the style of prompts, frames, pixels, times, positions and coordinates
of boxes. transformers does not look at it. What it states wins over the processor files, and what a recipe or the
command line sets wins over both.
"""

import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol

from jvlmm.config import from_dict
from jvlmm.data.coordinates import Coordinates
from jvlmm.data.positions import DEFAULT_TEXT_AFTER_MEDIA, TextAfterMedia
from jvlmm.data.processor import ProcessorOptions
from jvlmm.data.prompts import Style
from jvlmm.data.timestamps import ALLOWED, tells_times
from jvlmm.errors import CheckpointError, ConfigError
from jvlmm.models.huggingface.json_file import optional_json
from jvlmm.models.huggingface.processors import ProcessorSettings, image_settings, video_settings
from jvlmm.video.budget import DEFAULT_PIXELS, PixelOptions
from jvlmm.video.overrides import (
    FrameOverrides,
    PixelOverrides,
    as_overrides,
    overriding,
    overriding_pixels,
    stated_fields,
)
from jvlmm.video.sampling import DEFAULT_FRAMES, FrameOptions

PROCESSING = "jvlmm_processing.json"


@dataclass(frozen=True)
class Processing:
    """How questions and media are shown, as far as it is stated; None leaves it open."""

    style: Style | None = None
    frames: FrameOverrides | FrameOptions = field(default_factory=FrameOverrides)
    pixels: PixelOverrides | PixelOptions = field(default_factory=PixelOverrides)
    timestamps: str | None = None  # see ProcessorOptions
    text_after_media: TextAfterMedia | None = None  # see positions.mrope_positions
    coordinates: Coordinates | None = None  # of the boxes of answers

    @classmethod
    def set_by(cls, options: "Shows") -> "Processing":
        """What the options of a verb or a stage set; how they ask stands elsewhere."""
        return cls(
            frames=options.frames,
            pixels=options.pixels,
            timestamps=options.timestamps,
            text_after_media=options.text_after_media,
            coordinates=options.coordinates,
        )


class Shows(Protocol):
    """Options that say how media are shown; see `Processing`."""

    frames: FrameOverrides | FrameOptions
    pixels: PixelOverrides | PixelOptions
    timestamps: str | None
    text_after_media: TextAfterMedia | None
    coordinates: Coordinates | None


def checkpoint_processing(model_dir: str | Path, adapter: str | Path | None = None) -> Processing:
    """Returns what a checkpoint folder states; of an `adapter` folder that is merged into it, what that one states.

    Images have the bounds of its image processor. So have videos those of its video processor, but no frame has more
    than qwen_vl_utils' 602,112 pixels: transformers 4.52 to 4.57 wrote the 12,845,056 of an image there.
    Raises CheckpointError for a file that says something else.
    """
    folder = Path(model_dir)
    images, videos = image_settings(folder), video_settings(folder)
    path = folder / PROCESSING
    if adapter is not None and (Path(adapter) / PROCESSING).is_file():
        path = Path(adapter) / PROCESSING
    low, high = _bounds(images)
    video_low, video_high = _bounds(videos)
    if video_high is not None:
        video_high = max(min(video_high, DEFAULT_PIXELS.video_max_pixels), video_low or 0)
    values = optional_json(path)
    try:
        trained = from_dict(Processing, values)
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}; restore the file that training wrote, or delete it") from None
    written = stated_fields(trained.pixels)
    of_files = {"min_pixels": low, "max_pixels": high, "video_min_pixels": video_low, "video_max_pixels": video_high}
    timestamps = videos.values.get("timestamps") if trained.timestamps is None else trained.timestamps
    if timestamps and not (isinstance(timestamps, str) and tells_times(timestamps)):
        named = path if trained.timestamps is not None else videos.path
        raise CheckpointError(f"{named}: timestamps is {str(timestamps)[:80]!r}; allowed: {ALLOWED}, or nothing")
    return Processing(
        style=trained.style,
        frames=trained.frames,
        pixels=PixelOverrides(**{**of_files, **written}),
        timestamps=timestamps,
        text_after_media=trained.text_after_media,
        coordinates=trained.coordinates,
    )


def processor_options(
    model_dir: str | Path,
    style: Style,
    max_length: int,
    asked: Processing = Processing(),
    adapter: str | Path | None = None,
    **further: Any,
) -> ProcessorOptions:
    """Returns how a checkpoint's processor works: what is `asked`, else what the checkpoint states, else the default.

    `asked.style` is not looked at; `adapter` is a folder that is merged into the checkpoint; `further` are other fields
    of ProcessorOptions. Raises what `checkpoint_processing` does, and ConfigError for options that do not go together.
    """
    own = checkpoint_processing(model_dir, adapter)
    return ProcessorOptions(
        style=style,
        frames=overriding(asked.frames, overriding(own.frames, DEFAULT_FRAMES)),
        pixels=overriding_pixels(asked.pixels, overriding_pixels(own.pixels, DEFAULT_PIXELS)),
        max_length=max_length,
        timestamps=_first(asked.timestamps, own.timestamps, ""),
        text_after_media=_first(asked.text_after_media, own.text_after_media, DEFAULT_TEXT_AFTER_MEDIA),
        coordinates=asked.coordinates or own.coordinates,
        **further,
    )


def difference(model_dir: str | Path, options: ProcessorOptions, adapter: str | Path | None = None) -> str:
    """Returns one line that says what is shown otherwise than the checkpoint states, "" where nothing is."""
    own = checkpoint_processing(model_dir, adapter)
    pairs = [
        ("style", own.style, options.style),
        ("timestamps", own.timestamps, options.timestamps),
        ("text_after_media", own.text_after_media, options.text_after_media),
        ("coordinates", own.coordinates, options.coordinates),
    ]
    for group, stated, shown in (("frames", own.frames, options.frames), ("pixels", own.pixels, options.pixels)):
        names = [field.name for field in fields(stated)]
        if group == "frames" and (own.frames.num_frames or own.frames.fps):
            counts = own.frames.num_frames, options.frames.num_frames
            pairs.append(("frames.num_frames", counts[0] or "none", counts[1] or "none"))
            names = ["sampler"] if all(counts) else [name for name in names if name != "num_frames"]
        pairs += [(f"{group}.{name}", getattr(stated, name), getattr(shown, name)) for name in names]
    told = [f"{name}={shown} instead of {stated}" for name, stated, shown in pairs if stated not in (None, shown)]
    return f"{adapter or model_dir}: shown otherwise than the checkpoint asks: {', '.join(told)}" if told else ""


def write_processing(model_dir: str | Path, options: ProcessorOptions) -> None:
    """State in a checkpoint folder what these options show, for whoever asks it later."""
    _write(
        model_dir,
        {
            "style": options.style,
            "frames": stated_fields(as_overrides(options.frames)),
            "pixels": stated_fields(as_overrides(options.pixels)),
            "timestamps": options.timestamps,
            "text_after_media": options.text_after_media,
            "coordinates": options.coordinates,
        },
    )


def write_timestamps(model_dir: str | Path, form: str) -> None:
    """State in a checkpoint folder how times are told, and leave the rest as it is stated."""
    _write(model_dir, {**optional_json(Path(model_dir) / PROCESSING), "timestamps": form})


def _write(model_dir: str | Path, values: dict[str, Any]) -> None:
    (Path(model_dir) / PROCESSING).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _bounds(settings: ProcessorSettings) -> tuple[int | None, int | None]:
    """(fewest, most) pixels; CheckpointError where they leave nothing between them."""
    low, high = settings.bound("min_pixels", "shortest_edge"), settings.bound("max_pixels", "longest_edge")
    if low is not None and high is not None and low > high:
        raise CheckpointError(f"{settings.path}: min_pixels is {low}, max_pixels {high}; need min_pixels <= max_pixels")
    return low, high


def _first(*values: Any) -> Any:
    return next(value for value in values if value is not None)
