"""Labels of the cells a merged patch covers."""

import numpy as np

from jvlmm.data.moving_shapes.cells import CLASSES, cell_targets
from jvlmm.data.moving_shapes.scene import Scene, Shape


def _scene(*boxes, recolour=None, size=56):
    shape = Shape("square", "red", boxes, None, 0.0, None, recolour, ())
    return Scene("videos/a.mp4", size, (110, 110, 110), len(boxes), (shape,))


def test_a_shape_is_told_in_the_cells_it_lies_in_with_its_whole_box():
    scene = _scene((20, 0, 34, 14), (21, 0, 35, 14))  # six and seven of fourteen columns right of the middle
    targets = cell_targets(scene)
    assert targets.shape == (4, len(CLASSES), 2, 5)
    red_square = CLASSES.index(("red", "square"))
    np.testing.assert_allclose(targets[0, red_square, 0], [1, 20 / 56, 0, 34 / 56, 14 / 56], rtol=1e-6)
    np.testing.assert_allclose(targets[1, red_square, 1], [1, 21 / 56, 0, 35 / 56, 14 / 56], rtol=1e-6)
    targets[:2, red_square] = 0
    assert not targets.any()


def test_a_sliver_is_not_told():
    red_square = CLASSES.index(("red", "square"))
    targets = cell_targets(_scene((16, 0, 30, 14), (16, 0, 30, 14)))  # two of fourteen columns reach the right cell
    assert targets[0, red_square, 0, 0] == 1 and targets[1, red_square, 0, 0] == 0


def test_time_goes_in_pairs_and_colours_and_absences_are_those_of_the_step():
    box = (1, 30, 15, 44)
    targets = cell_targets(_scene(None, box, box, recolour=(2, "blue")))
    assert targets.shape[0] == 8  # a third step is a frame alone, seen twice
    red, blue = CLASSES.index(("red", "square")), CLASSES.index(("blue", "square"))
    assert targets[2, red, :, 0].tolist() == [0, 1]
    assert targets[4 + 2, blue, :, 0].tolist() == [1, 1] and targets[4 + 2, red, :, 0].tolist() == [0, 0]
