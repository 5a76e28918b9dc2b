"""Multimodal rotary positions (M-RoPE): those of a row, computed on the host, and that of the token after a row."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np

from jvlmm.models.config import SpecialTokens, VisionConfig

TextAfterMedia = Literal["max", "grid"]
TEXT_AFTER_MEDIA: tuple[TextAfterMedia, ...] = get_args(TextAfterMedia)
DEFAULT_TEXT_AFTER_MEDIA: TextAfterMedia = "max"
"""How the released weights were trained."""


def mrope_positions(
    tokens: np.ndarray,
    grids: Sequence[tuple[int, int, int]],
    seconds_per_grid: Sequence[float],
    special: SpecialTokens,
    vision: VisionConfig,
    text_after_media: TextAfterMedia = DEFAULT_TEXT_AFTER_MEDIA,
) -> tuple[np.ndarray, int]:
    """Temporal, height and width positions of every token, and the position of the token after the last.

    tokens: int [L], placeholders expanded to one per merged feature. grids: (t, h, w) in patches of each
    image or video, in the order of their placeholders. seconds_per_grid: seconds between two temporal
    patches of each; ignored for images. Returns (int32 [3, L], next position).

    Text counts up by one on all three axes. A merged patch at (t, y, x) of a video that starts at s stands
    at (s + ⌊t · tokens_per_second · seconds_per_grid⌋, s + y, s + x), the product in float32; for an image
    the temporal step is 1. Where text goes on after media: `max` is one more than the largest position so
    far on any axis, as in transformers 4.49 to 5.2 and vLLM, which the released weights were trained with;
    `grid` is s + max(h, w) / merge, as in `Qwen2_5_VLModel.get_rope_index` of transformers 5.3 and later.
    They differ for videos whose temporal positions pass the spatial ones.

    Raises ValueError when the runs of placeholders do not fit the grids.
    """
    tokens = np.asarray(tokens)
    merge = vision.spatial_merge_size
    is_media = (tokens == special.image) | (tokens == special.video)
    bounds = np.flatnonzero(np.diff(is_media, prepend=False, append=False)).reshape(-1, 2)
    if len(bounds) != len(grids) or len(grids) != len(seconds_per_grid):
        raise ValueError(f"{len(bounds)} runs of placeholders for {len(grids)} grids")
    positions = np.empty((3, len(tokens)), np.int32)
    done, start, largest = 0, 0, -1
    for (begin, end), (t, h, w), seconds in zip(bounds, grids, seconds_per_grid, strict=True):
        text = np.arange(start, start + begin - done)
        positions[:, done:begin] = text
        start += len(text)
        step = np.float32(1 if tokens[begin] == special.image else vision.tokens_per_second * np.float32(seconds))
        times = (np.arange(t, dtype=np.float32) * step).astype(np.int32)
        media = np.meshgrid(times, np.arange(h // merge), np.arange(w // merge), indexing="ij")
        if media[0].size != end - begin:
            raise ValueError(f"{end - begin} placeholders for a grid of {media[0].size} merged patches")
        positions[:, begin:end] = start + np.stack(media).reshape(3, -1)
        largest = int(positions[:, begin:end].max())
        start = largest + 1 if text_after_media == "max" else start + max(h, w) // merge
        done = end
    positions[:, done:] = np.arange(start, start + len(tokens) - done)
    return positions, int(next_position(positions, np.int32(len(tokens))))


def next_position(positions: Any, lengths: Any) -> Any:
    """Returns where the token after each row's last one stands, the same on all three axes: int32 [...].

    positions: int [..., 3, L]. lengths: int [...], tokens of each row; what lies past them is padding. NumPy
    arrays, or JAX arrays, inside a compiled program too.

    A row that is asked ends with text, whose three positions are equal, and the token after it stands one
    further on: whether it is learnt in SFT, decoded (as `generate` of transformers decodes), a completion of
    GRPO or what a teacher reads. This is the only place that says so. A row without tokens gives 0.
    """
    is_last = np.arange(positions.shape[-1]) == lengths[..., None] - 1
    return ((positions + 1) * is_last[..., None, :]).max((-2, -1), initial=0)
