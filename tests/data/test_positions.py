"""Positions without the reference: what the two rules for text after media promise, the next one, and refusals."""

import jax
import numpy as np
import pytest

from jvlmm.data.positions import mrope_positions, next_position
from jvlmm.models.config import SpecialTokens, VisionConfig

SPECIAL = SpecialTokens(image=1, video=2, vision_start=3, vision_end=4, eos=(5,), pad=6)
VIDEO = np.array([9, 3, *[2] * 10, 4, 9], np.int32)


def test_text_after_a_long_video_follows_the_chosen_rule():
    grid, seconds = [(10, 2, 2)], [1.0]
    by_grid, after_grid = mrope_positions(VIDEO, grid, seconds, SPECIAL, VisionConfig(), text_after_media="grid")
    by_max, after_max = mrope_positions(VIDEO, grid, seconds, SPECIAL, VisionConfig())
    np.testing.assert_array_equal(by_grid[0, 2:12], 2 + 2 * np.arange(10))
    np.testing.assert_array_equal(by_grid[:, 12:], [[3, 4]] * 3)
    np.testing.assert_array_equal(by_max[:, 12:], [[21, 22]] * 3)
    assert (after_grid, after_max) == (5, 23), "one after the last token, as transformers decodes"


def test_the_next_position_is_after_the_last_token_of_each_row():
    """Of one row and of several, the last of which has no tokens; in a compiled program, too."""
    one, following = mrope_positions(VIDEO, [(10, 2, 2)], [1.0], SPECIAL, VisionConfig(), text_after_media="grid")
    rows = np.stack([np.pad(one, [(0, 0), (0, 3)]), np.pad(one[:, :2], [(0, 0), (0, 15)]), np.zeros((3, 17), np.int32)])
    lengths = np.array([14, 2, 0], np.int32)
    for function in (next_position, jax.jit(next_position)):
        found = np.asarray(function(rows, lengths))
        assert found.tolist() == [following, 2, 0] and found.dtype == np.int32


@pytest.mark.parametrize("grids", [[], [(10, 2, 2), (1, 2, 2)], [(9, 2, 2)]])
def test_placeholders_that_do_not_fit_the_grids_are_refused(grids):
    with pytest.raises(ValueError, match="placeholders"):
        mrope_positions(VIDEO, grids, [1.0] * len(grids), SPECIAL, VisionConfig())
