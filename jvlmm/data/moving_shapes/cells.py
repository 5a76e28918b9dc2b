"""What lies under each merged patch of a scene: dense labels for a vision tower that learns to see."""

import numpy as np

from jvlmm.data.moving_shapes.scene import COLOURS, KINDS, Scene

CLASSES = tuple((colour, kind) for colour in COLOURS for kind in KINDS)
_MIN_SHARE = 0.15  # of a shape's box inside a cell, for the cell to show it


def cell_targets(scene: Scene, cell: int = 28, frames: int = 2) -> np.ndarray:
    """float32 [cells, frames, len(CLASSES) + 5]: what a cell shows in each of its frames.

    First 1 or 0 for every class, then whether the shape of which the cell shows most is visible, and its box (x1, y1,
    x2, y2) as shares of the frame, also where it reaches beyond the cell; 0 without a shape. A cell is `cell` × `cell`
    pixels of `frames` successive steps; cells are in raster order (time, row, column).
    """
    side, lasting = scene.size // cell, -(-scene.steps // frames)
    targets = np.zeros((lasting, side, side, frames, len(CLASSES) + 5), np.float32)
    for time in range(lasting):
        steps = [min(time * frames + k, scene.steps - 1) for k in range(frames)]  # a frame alone is seen twice
        areas = np.zeros((side, side, len(scene.shapes)))
        for index, shape in enumerate(scene.shapes):
            for frame, step in enumerate(steps):
                if shape.boxes[step]:
                    inside, share = _overlap(shape.boxes[step], side, cell)
                    name = CLASSES.index((shape.colour_at(step), shape.kind))
                    targets[time, share >= _MIN_SHARE, frame, name] = 1
                    areas[..., index] += np.where(share >= _MIN_SHARE, inside, 0)
        for row, column in np.argwhere(areas.any(-1)):
            largest = scene.shapes[areas[row, column].argmax()]
            for frame, step in enumerate(steps):
                if largest.boxes[step]:
                    told = (1, *(np.array(largest.boxes[step]) / scene.size))
                    targets[time, row, column, frame, len(CLASSES) :] = told
    return targets.reshape(-1, frames, len(CLASSES) + 5)


def _overlap(box, side: int, cell: int) -> tuple[np.ndarray, np.ndarray]:
    """float64 [rows, columns] twice: pixels of the box inside each cell, and their share of the box."""
    corners = cell * np.stack(np.meshgrid(np.arange(side), np.arange(side)), axis=-1)  # [row, column, (x, y)]
    low, high = np.array(box[:2]), np.array(box[2:])
    inside = np.clip(np.minimum(high, corners + cell) - np.maximum(low, corners), 0, None).prod(-1)
    return inside, inside / (high - low).prod()
