"""Positions against transformers: its own `get_rope_index` (`grid`), and the algorithm of its 4.49 (`max`)."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jvlmm.data.positions import mrope_positions
from jvlmm.models.config import SpecialTokens, VisionConfig

torch = pytest.importorskip("torch", reason="parity needs PyTorch")
qwen = pytest.importorskip("transformers.models.qwen2_5_vl.modeling_qwen2_5_vl")

SPECIAL = SpecialTokens(image=1, video=2, vision_start=3, vision_end=4, eos=(5,), pad=6)


class _Model:
    """The two methods under comparison on a bare config: no weights are needed."""

    get_rope_index = qwen.Qwen2_5_VLModel.get_rope_index
    get_vision_position_ids = qwen.Qwen2_5_VLModel.get_vision_position_ids

    def __init__(self, tokens_per_second):
        class Vision:
            spatial_merge_size = 2

        class Config:
            vision_config = Vision()

        Vision.tokens_per_second = tokens_per_second
        self.config = Config()


def _row(parts):
    """Tokens of a row from parts: an int is that many text tokens, ("image"|"video", grid, seconds) is media."""
    tokens, grids, seconds = [], [], []
    for part in parts:
        if isinstance(part, int):
            tokens += [10] * part
            continue
        kind, grid, second = part
        tokens += [3, *[1 if kind == "image" else 2] * (int(np.prod(grid)) // 4), 4]
        grids.append(grid)
        seconds.append(second)
    return np.array(tokens, np.int32), grids, seconds


def _reference(tokens, parts, tokens_per_second):
    media = [p for p in parts if not isinstance(p, int)]
    images = [p[1] for p in media if p[0] == "image"]
    videos = [p for p in media if p[0] == "video"]
    types = np.select([tokens == 1, tokens == 2], [1, 2], 0)
    positions, _ = _Model(tokens_per_second).get_rope_index(
        torch.tensor(tokens)[None].long(),
        torch.tensor(types)[None],
        image_grid_thw=torch.tensor(images) if images else None,
        video_grid_thw=torch.tensor([p[1] for p in videos]) if videos else None,
        second_per_grid_ts=torch.tensor([p[2] for p in videos]) if videos else None,
    )
    return positions[:, 0].numpy()


def _as_4_49(tokens, grids, seconds, tokens_per_second):
    """`Qwen2_5_VLForConditionalGeneration.get_rope_index` of transformers 4.49, of one row: (positions, the next).

    It looks for the next placeholder from where it stands; text goes on at the maximum of all before it, plus one.
    """
    ids, chunks, start = tokens.tolist(), [], 0
    for (t, h, w), second in zip(grids, seconds, strict=True):
        places = [ids.index(kind, start) for kind in (1, 2) if kind in ids[start:]]
        end, is_image = min(places), ids[min(places)] == 1
        begin = int(chunks[-1].max()) + 1 if chunks else 0
        text = end - start
        if text:
            chunks.append(torch.arange(text).view(1, -1).expand(3, -1) + begin)
        h, w = h // 2, w // 2
        interval = torch.tensor(0.0 if is_image else second, dtype=torch.float32)
        times = (torch.arange(t).view(-1, 1).expand(-1, h * w) * interval * tokens_per_second).long().flatten()
        rows = torch.arange(h).view(1, -1, 1).expand(t, -1, w).flatten()
        columns = torch.arange(w).view(1, 1, -1).expand(t, h, -1).flatten()
        chunks.append(torch.stack([times, rows, columns]) + text + begin)
        start = end + t * h * w
    if start < len(ids):
        begin = int(chunks[-1].max()) + 1 if chunks else 0
        chunks.append(torch.arange(len(ids) - start).view(1, -1).expand(3, -1) + begin)
    positions = torch.cat(chunks, dim=1).numpy()
    return positions, int(positions.max()) + 1


def _check(parts, tokens_per_second=2):
    tokens, grids, seconds = _row(parts)
    vision = VisionConfig(tokens_per_second=tokens_per_second)
    by_grid, _ = mrope_positions(tokens, grids, seconds, SPECIAL, vision, text_after_media="grid")
    np.testing.assert_array_equal(by_grid, _reference(tokens, parts, tokens_per_second))
    assert by_grid.dtype == np.int32
    if tokens_per_second < 25:  # of a power of two both orders of the product are exact
        by_max, following = mrope_positions(tokens, grids, seconds, SPECIAL, vision)
        expected, expected_following = _as_4_49(tokens, grids, seconds, tokens_per_second)
        np.testing.assert_array_equal(by_max, expected)
        assert following == expected_following


@pytest.mark.parametrize(
    "parts",
    [
        [7],
        [3, ("image", (1, 4, 6), 0.0), 5],
        [("video", (4, 4, 4), 1.0), 5],
        [2, ("image", (1, 2, 2), 0.0), 1, ("image", (1, 6, 4), 0.0), 3],
        [2, ("video", (3, 4, 8), 0.5), 1, ("image", (1, 6, 4), 0.0), ("video", (5, 2, 4), 2 / 3), 3],
        [1, ("video", (30, 4, 4), 1.0), 4],
    ],
    ids=["text", "image", "video", "two images", "mixed", "long video"],
)
def test_rows_match_transformers(parts):
    _check(parts)


@pytest.mark.parametrize("fps", [0.37, 1, 2, 3, 23.976, 29.97, 30])
@pytest.mark.parametrize("tokens_per_second", [2, 4, 25])
def test_frame_rates_match_transformers(fps, tokens_per_second):
    _check([3, ("video", (17, 4, 2), 2 / fps), 6], tokens_per_second)


_grids = st.tuples(st.integers(1, 9), st.integers(1, 4), st.integers(1, 4)).map(lambda g: (g[0], 2 * g[1], 2 * g[2]))
_media = st.one_of(
    _grids.map(lambda g: ("image", (1, g[1], g[2]), 0.0)),
    st.tuples(_grids, st.floats(0.0625, 5, width=32)).map(lambda p: ("video", *p)),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.integers(1, 6), _media), min_size=1, max_size=6))
def test_any_row_matches_transformers(parts):
    _check(parts)
