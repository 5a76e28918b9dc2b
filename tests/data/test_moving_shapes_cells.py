"""Labels of the cells a merged patch covers."""

import numpy as np

from jvlmm.data.moving_shapes.cells import CLASSES, cell_targets
from jvlmm.data.moving_shapes.scene import Scene, Shape

RED_SQUARE, BLUE_SQUARE = (CLASSES.index((colour, "square")) for colour in ("red", "blue"))


def _shape(*boxes, colour="red", recolour=None):
    return Shape("square", colour, boxes, None, 0.0, None, recolour, ())


def _scene(*shapes):
    return Scene("videos/a.mp4", 56, (110, 110, 110), len(shapes[0].boxes), shapes)


def test_a_shape_is_told_in_the_cells_it_lies_in_with_its_whole_box():
    scene = _scene(_shape((20, 0, 34, 14), (21, 0, 35, 14)))  # six and seven of fourteen columns right of the middle
    targets = cell_targets(scene)
    assert targets.shape == (4, 2, len(CLASSES) + 5)
    assert targets[:2, :, RED_SQUARE].all()
    for cell in (0, 1):
        np.testing.assert_allclose(targets[cell, 0, -5:], [1, 20 / 56, 0, 34 / 56, 14 / 56], rtol=1e-6)
        np.testing.assert_allclose(targets[cell, 1, -5:], [1, 21 / 56, 0, 35 / 56, 14 / 56], rtol=1e-6)
    assert targets[:2, :, : len(CLASSES)].sum() == 4 and not targets[2:].any()


def test_a_sliver_is_not_told():
    targets = cell_targets(_scene(_shape((16, 0, 30, 14), (16, 0, 30, 14))))  # two of fourteen columns at the right
    assert targets[0].any() and not targets[1].any()


def test_the_box_is_that_of_the_shape_of_which_the_cell_shows_most():
    small, large = (0, 0, 10, 10), (12, 12, 28, 28)
    targets = cell_targets(_scene(_shape(small, small), _shape(large, large, colour="blue")))
    assert targets[0, :, [RED_SQUARE, BLUE_SQUARE]].all()
    np.testing.assert_allclose(targets[0, 0, -4:], np.array(large) / 56, rtol=1e-6)


def test_time_goes_in_pairs_and_colours_and_absences_are_those_of_the_step():
    box = (1, 30, 15, 44)
    targets = cell_targets(_scene(_shape(None, box, box, recolour=(2, "blue"))))
    assert targets.shape[0] == 8  # a third step is a frame alone, seen twice
    assert targets[2, :, RED_SQUARE].tolist() == [0, 1] and targets[2, :, -5].tolist() == [0, 1]
    assert targets[4 + 2, :, BLUE_SQUARE].tolist() == [1, 1] and targets[4 + 2, :, RED_SQUARE].tolist() == [0, 0]
