"""Example → Sequence: decode the media, render the prompt, place the positions."""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol

import numpy as np

from jvlmm.data.coordinates import COORDINATES, Coordinates, Shown, as_answered, note
from jvlmm.data.example import Example, Media
from jvlmm.data.patch_cache import PatchCache
from jvlmm.data.positions import DEFAULT_TEXT_AFTER_MEDIA, TEXT_AFTER_MEDIA, TextAfterMedia, mrope_positions
from jvlmm.data.prompts import Style, media_in_order, render
from jvlmm.data.sequence import Sequence
from jvlmm.data.timestamps import ALLOWED, tells_times
from jvlmm.data.tokenizer import ChatTokenizer
from jvlmm.errors import ConfigError, DataError, VideoError
from jvlmm.models.config import ModelConfig, VisionConfig
from jvlmm.video.budget import MERGED_PATCH, PixelOptions
from jvlmm.video.clip import Clip, Patches
from jvlmm.video.fitting import FitOptions, Measured, Plan, asked_plan, fitted, planned_size, visual_tokens
from jvlmm.video.patches import to_patches
from jvlmm.video.sampling import FrameOptions

_MEASURED = 2048  # files whose measures are kept
_ROOMS = 64  # of max_length: steps of the room that media are made to fit
_SLACK = 4  # tokens by which a note or the numbers of a box may be longer than foreseen

Run = tuple[tuple[int, int, int], float]  # of placeholders: its grid, the seconds between temporal patches


class Decoder(Protocol):
    """What the processor asks of `jvlmm.video.workers.Decoder`."""

    def video(
        self, path: str, frames: FrameOptions, start: float | None, end: float | None, *, pixels: PixelOptions
    ) -> Clip: ...

    def image(self, path: str, *, pixels: PixelOptions) -> Clip: ...

    def measure_video(
        self, path: str, frames: FrameOptions, start: float | None, end: float | None, most_decoded: int
    ) -> Measured: ...

    def measure_image(self, path: str) -> Measured: ...


@dataclass(frozen=True)
class ProcessorOptions:
    """How an example is asked and how much of it the model sees."""

    style: Style = "direct"
    frames: FrameOptions = FrameOptions()
    pixels: PixelOptions = PixelOptions()
    max_length: int = 8192  # tokens of one sequence, visual tokens included
    max_patches: int | None = None  # of all media of one sequence; None: no bound besides max_length
    cache_bytes: int = 0  # host memory for patches of files used again; 0 decodes every time
    text_after_media: TextAfterMedia = DEFAULT_TEXT_AFTER_MEDIA  # see positions.mrope_positions
    fit: FitOptions = FitOptions()  # what becomes of media that are too large for max_length or max_patches
    coordinates: Coordinates | None = None  # of the boxes of answers; None: as the model's family writes them
    timestamps: str = ""  # of seconds, such as "{:.1f}": said before every temporal patch of a video; "" says none

    def __post_init__(self) -> None:
        if self.style not in ("direct", "think", "describe"):
            raise ConfigError(f"style={self.style!r} is unknown; choose direct, think or describe")
        if self.text_after_media not in TEXT_AFTER_MEDIA:
            raise ConfigError(f"text_after_media={self.text_after_media!r} is unknown; choose max or grid")
        if self.coordinates is not None and self.coordinates not in COORDINATES:
            raise ConfigError(f"coordinates={self.coordinates!r} is unknown; choose {', '.join(COORDINATES)} or none")
        if self.timestamps and not tells_times(self.timestamps):
            raise ConfigError(f"timestamps={self.timestamps[:80]!r} tells no time; write {ALLOWED}")
        if self.max_length < 1:
            raise ConfigError(f"max_length={self.max_length} must be at least 1")
        if self.cache_bytes < 0:
            raise ConfigError(f"cache_bytes={self.cache_bytes} must be at least 0")


class Processor:
    """Turns examples into sequences for one model; safe to call from several threads."""

    def __init__(self, tokenizer: ChatTokenizer, config: ModelConfig, options: ProcessorOptions, decoder: Decoder):
        """Raises ConfigError where the tokenizer and the model do not belong together."""
        ids = {
            "image": tokenizer.image_id,
            "video": tokenizer.video_id,
            "vision_start": tokenizer.vision_start_id,
            "vision_end": tokenizer.vision_end_id,
        }
        for name, token_id in ids.items():
            if getattr(config.tokens, name) != token_id:
                raise ConfigError(
                    f"the {name} token is {token_id} in the tokenizer and {getattr(config.tokens, name)} in the model; "
                    "use the tokenizer of the same checkpoint"
                )
        merged = config.vision.patch_size * config.vision.spatial_merge_size
        if merged != MERGED_PATCH:
            raise ConfigError(
                f"the model merges patches to {merged} pixels a side; the pixel budget is made for {MERGED_PATCH}"
            )
        if tokenizer.length > config.text.vocab_size:
            raise ConfigError(
                f"the tokenizer has {tokenizer.length} entries, the model {config.text.vocab_size}; "
                "use the tokenizer of the same checkpoint"
            )
        self.tokenizer = tokenizer
        self.config = config
        self.options = options
        self.coordinates: Coordinates = options.coordinates or config.coordinates
        self.cache = PatchCache(options.cache_bytes)
        self._measured = lru_cache(_MEASURED)(self._measure)
        self.decoder = decoder

    @property
    def workers(self) -> int:
        """Files that are decoded at one time, beside the threads that ask; 0 where those decode themselves."""
        return getattr(self.decoder, "workers", 0)

    def prompt(self, example: Example) -> Sequence:
        """The question after the turns before it, ending with the header of the assistant's turn; nothing to learn."""
        return self._sequence(example)

    def training(self, example: Example) -> Sequence:
        """The conversation with its responses; the loss is on them and their ends, or on what `example.learn` names.

        `prompt` and `training` raise DataError or VideoError, the example's id first.
        """
        if not (example.response or "").strip():
            raise DataError(
                f"{example.id}: no response to learn; give the row a response, or learn its bare answer with "
                "view=answer (of the source: STAGE.sources.NAME.view=answer)"
            )
        sequence = self._sequence(example, with_response=True)
        if example.learn:
            learnt = [self._single_token(example.id, text) for text in example.learn]
            sequence = replace(sequence, loss_mask=sequence.loss_mask & np.isin(sequence.tokens, learnt))
        if not sequence.loss_mask.any():
            why = f"learn names {', '.join(map(repr, example.learn))}, of which" if example.learn else "of its response"
            raise DataError(f"{example.id}: {why} no token is learnt; name tokens that the response has")
        return sequence

    def response(self, example: Example) -> np.ndarray:
        """int32 [C]: the tokens that follow `prompt` where the assistant gives the example's response; its end, too."""
        messages = render(example, self.options.style)
        said = {"role": "assistant", "content": example.response}
        try:
            prompt, _ = self.tokenizer.encode_chat(messages, add_generation_prompt=True)
            tokens, mask = self.tokenizer.encode_chat([*messages, said])
        except DataError as error:
            raise DataError(f"{example.id}: {error}") from error
        return tokens[len(prompt) :][mask[len(prompt) :]]

    def _single_token(self, example_id: str, text: str) -> int:
        tokens = self.tokenizer.encode(text)
        if len(tokens) != 1:
            raise DataError(
                f"{example_id}: learn names {text!r}, which is {len(tokens)} tokens; name texts of one token each"
            )
        return int(tokens[0])

    def patches(self, media: Media, plan: Plan | None = None) -> Patches:
        """Decode, resize and cut one image or video, or take it from the cache. Raises VideoError.

        With a `plan` so much of it is shown, else all that the options ask for.
        """
        frames, pixels, vision = self.options.frames, self.options.pixels, self.config.vision
        if plan is not None:
            frames, pixels = plan.frame_options(frames), plan.pixel_options(pixels)
        return self.cache.get(
            (media, frames, pixels), lambda: decode_patches(media, self.decoder, frames, pixels, vision)
        )

    def _sequence(self, example: Example, with_response: bool = False) -> Sequence:
        try:
            # The text comes first: what it leaves of the length is what the media may take.
            media = media_in_order(example, render(example, self.options.style))
            plans = self._plans(example, media, with_response)
            patches = tuple(self.patches(medium, plan) for medium, plan in zip(media, plans, strict=True))
            shown = tuple(map(self._shown, media, patches, plans))
            tokens, said = self._text(example, shown, with_response)
        except (DataError, VideoError) as error:
            message = str(error)
            raise type(error)(
                message if message.startswith(f"{example.id}: ") else f"{example.id}: {message}"
            ) from error
        tokens, loss_mask, runs = self._expand(example, tokens, said & with_response, patches)
        is_media = (tokens == self.tokenizer.image_id) | (tokens == self.tokenizer.video_id)
        positions, following = mrope_positions(
            tokens,
            [grid for grid, _ in runs],
            [seconds for _, seconds in runs],
            self.config.tokens,
            self.config.vision,
            self.options.text_after_media,
        )
        return Sequence(
            id=example.id,
            tokens=tokens,
            positions=positions,
            loss_mask=loss_mask,
            visual_index=np.where(is_media, np.cumsum(is_media) - 1, -1).astype(np.int32),
            patches=patches,
            next_position=following,
            shown=shown,
            coordinates=self.coordinates,
        )

    def _text(self, example: Example, shown: tuple[Shown, ...], with_response: bool) -> tuple[np.ndarray, np.ndarray]:
        """Tokens of the conversation with a placeholder for each medium, and which of them the assistant says."""
        example = as_answered(example, self.coordinates, shown)
        messages = render(example, self.options.style, note(self.coordinates, shown))
        if with_response:
            messages.append({"role": "assistant", "content": example.response})
        return self.tokenizer.encode_chat(messages, not with_response)

    def _plans(self, example: Example, media: list[Media], with_response: bool) -> tuple[Plan | None, ...]:
        """How much of each medium is shown: None for all that the options ask for. Nothing is decoded yet."""
        options, pixels = self.options, self.options.pixels
        everything = (None,) * len(media)
        if not media or options.fit.rule == "strict":
            return everything
        measured = [self._measured(medium) for medium in media]
        asked = [asked_plan(medium, pixels) for medium in measured]
        steps = [self._step_tokens(medium) for medium in measured]
        sizes = [planned_size(medium, plan, pixels) for medium, plan in zip(measured, asked, strict=True)]
        shown = tuple(map(_foreseen, media, measured, sizes))
        marks = len(media) + 2 * sum(map(bool, steps))  # placeholders, which the pictures replace
        text = len(self._text(example, shown, with_response)[0]) - marks
        visual = sum(visual_tokens(medium, plan, pixels) for medium, plan in zip(measured, asked, strict=True))
        most = options.max_length
        if options.max_patches is not None:
            most = min(most, options.max_patches // self.config.vision.spatial_merge_size**2)
        long = any(medium.affordable is not None for medium in measured)
        if text + visual + sum(map(sum, steps)) <= options.max_length and visual <= most and not long:
            return everything

        # Smaller pictures may need a note on a box's pixels where those asked for need none. Questions of about one
        # length get the same room, so that what is decoded for one can be used for another.
        smaller = [(max(height - MERGED_PATCH, MERGED_PATCH), width) for height, width in sizes]
        shown = tuple(map(_foreseen, media, measured, smaller))
        longest = max(text, len(self._text(example, shown, with_response)[0]) - marks + _SLACK)
        room = options.max_length - longest
        room = min(room - room % max(options.max_length // _ROOMS, 1), most)
        plans = fitted(measured, pixels, options.fit, room=room, step_tokens=[max(step, default=0) for step in steps])
        if plans is None:
            fewer = f"show fewer media than {len(media)}, " if len(media) > 1 else ""
            raise DataError(
                f"{text + visual + sum(map(sum, steps))} tokens ({visual} visual) exceed max_length="
                f"{options.max_length} or the patch buckets, even with the least of frames and pixels; shorten the "
                f"text, {fewer}or allow longer rows (length_buckets of a stage, else max_length)"
            )
        return tuple(None if plan == whole else plan for plan, whole in zip(plans, asked, strict=True))

    def _step_tokens(self, medium: Measured) -> list[int]:
        """Tokens of each temporal patch besides its pixels: of its time, where times are said, and of its marks."""
        if not self.options.timestamps:
            return []
        starts = medium.times[:: self.config.vision.temporal_patch_size]
        return [len(self.tokenizer.encode(self.options.timestamps.format(start))) + 2 for start in starts]

    def _measure(self, media: Media) -> Measured:
        if media.type == "image":
            return self.decoder.measure_image(media.path)
        most = self.options.fit.most_decoded
        return self.decoder.measure_video(media.path, self.options.frames, media.start, media.end, most)

    def _shown(self, media: Media, patches: Patches, plan: Plan | None) -> Shown:
        """The record of what is shown of a medium, and of what was given up to make it fit."""
        frames, asked, size = patches.indices, None, None
        if plan is not None:
            measured = self._measured(media)
            whole = asked_plan(measured, self.options.pixels)
            asked = len(measured.times)
            size = _oriented(planned_size(measured, whole, self.options.pixels), measured, patches.file_size)
        elif media.type == "video":
            asked = self.options.frames.asked_frames
        return Shown(
            type=media.type,
            path=media.path,
            frames=tuple(frames.tolist()),
            times=tuple(round(time, 6) for time in patches.times.tolist()),
            file_size=patches.file_size[::-1],
            shown_size=patches.size[::-1],
            start=media.start,
            end=media.end,
            asked_frames=asked if asked is not None and asked > len(frames) else None,
            asked_size=size if size != patches.size[::-1] else None,
        )

    def _expand(
        self, example: Example, tokens: np.ndarray, loss_mask: np.ndarray, patches: tuple[Patches, ...]
    ) -> tuple[np.ndarray, np.ndarray, list[Run]]:
        """Put the runs of each medium in the place of its placeholder, within the limit on length."""
        places = np.flatnonzero((tokens == self.tokenizer.image_id) | (tokens == self.tokenizer.video_id))
        if len(places) != len(patches):
            raise DataError(
                f"{example.id}: the chat template places {len(places)} media, the example has {len(patches)}; "
                "use the template of a Qwen2.5-VL checkpoint"
            )
        written, learnt, runs, done = [], [], [], 0
        for place, medium in zip(places, patches, strict=True):
            timed = bool(self.options.timestamps) and medium.seconds_per_grid > 0
            expanded, of_medium = self._timed_runs(medium) if timed else self._run(medium, tokens[place])
            runs += of_medium
            begin, end = (place - 1, place + 2) if timed else (place, place + 1)
            written += [tokens[done:begin], expanded]
            learnt += [loss_mask[done:begin], np.zeros(len(expanded), bool)]
            done = end
        tokens = np.concatenate([*written, tokens[done:]])
        if len(tokens) > self.options.max_length:
            visual = sum(len(p.pixels) for p in patches) // self.config.vision.spatial_merge_size**2
            raise DataError(
                f"{example.id}: {len(tokens)} tokens ({visual} visual) exceed max_length={self.options.max_length}; "
                "lower the frames or pixels, shorten the text, or allow longer rows (length_buckets of a stage, else "
                "max_length)"
            )
        return tokens, np.concatenate([*learnt, loss_mask[done:]]), runs

    def _run(self, medium: Patches, placeholder: int) -> tuple[np.ndarray, list[Run]]:
        features = len(medium.pixels) // self.config.vision.spatial_merge_size**2
        return np.full(features, placeholder, np.int32), [(medium.grid, medium.seconds_per_grid)]

    def _timed_runs(self, video: Patches) -> tuple[np.ndarray, list[Run]]:
        """Each temporal patch as a medium of its own after the time of its first frame."""
        steps, height, width = video.grid
        marks = self.config.tokens
        patch = np.full(height * width // self.config.vision.spatial_merge_size**2, marks.video, np.int32)
        starts = video.times[:: self.config.vision.temporal_patch_size]
        parts = [
            part
            for start in starts
            for part in (
                self.tokenizer.encode(self.options.timestamps.format(start)),
                [marks.vision_start],
                patch,
                [marks.vision_end],
            )
        ]
        return np.concatenate(parts).astype(np.int32), [((1, height, width), 0.0)] * steps


def decode_patches(
    media: Media, decoder: Decoder, frames: FrameOptions, pixels: PixelOptions, vision: VisionConfig
) -> Patches:
    """The patches of one image or video file. Raises VideoError naming the file."""
    if media.type == "image":
        clip = decoder.image(media.path, pixels=pixels)
    else:
        clip = decoder.video(media.path, frames, media.start, media.end, pixels=pixels)
    size = clip.frames.shape[1:3]  # the decoder has brought it within the budget
    return to_patches(clip, size, vision.patch_size, vision.temporal_patch_size, vision.spatial_merge_size)


def _foreseen(media: Media, measured: Measured, size: tuple[int, int]) -> Shown:
    """A medium as it will be shown at a (height, width)."""
    file_size = measured.width, measured.height
    return Shown(media.type, media.path, (), (), file_size, size[::-1], media.start, media.end)


def _oriented(size: tuple[int, int], measured: Measured, file_size: tuple[int, int]) -> tuple[int, int]:
    """(width, height) of a planned size (height, width), turned where the file is stored turned."""
    turned = (measured.width, measured.height) == file_size != (measured.height, measured.width)
    return size if turned else size[::-1]
