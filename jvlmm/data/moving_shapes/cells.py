"""What lies under each merged patch of a scene: dense labels for a vision tower that learns to see."""

import numpy as np

from jvlmm.data.moving_shapes.scene import COLOURS, KINDS, Scene

CLASSES = tuple((colour, kind) for colour in COLOURS for kind in KINDS)
_MIN_SHARE = 0.15  # of a shape's box inside a cell, for the cell to show it


def cell_targets(scene: Scene, cell: int = 28, frames: int = 2) -> np.ndarray:
    """float32 [cells, len(CLASSES), frames, 5]: whether a cell shows a shape of the class, and the shape's box.

    A cell is `cell` × `cell` pixels of `frames` successive steps; cells are in raster order (time, row, column). A
    box is (x1, y1, x2, y2) as shares of the frame, also where it reaches beyond the cell; 0 without a shape.
    """
    side, lasting = scene.size // cell, -(-scene.steps // frames)
    targets = np.zeros((lasting, side, side, len(CLASSES), frames, 5), np.float32)
    corners = cell * np.stack(np.meshgrid(np.arange(side), np.arange(side)), axis=-1)  # [row, column, (x, y)]
    for step in range(lasting * frames):
        time, frame = divmod(step, frames)
        step = min(step, scene.steps - 1)  # a last frame alone is seen twice
        for shape in scene.shapes:
            box = shape.boxes[step]
            if box is None:
                continue
            low, high = np.array(box[:2]), np.array(box[2:])
            inside = np.clip(np.minimum(high, corners + cell) - np.maximum(low, corners), 0, None).prod(-1)
            shown = inside >= _MIN_SHARE * (high - low).prod()
            name = CLASSES.index((shape.colour_at(step), shape.kind))
            targets[time, shown, name, frame] = (1, *(np.array(box) / scene.size))
    return targets.reshape(-1, len(CLASSES), frames, 5)
