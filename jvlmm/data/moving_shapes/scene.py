"""The ground truth of one clip or image: shapes, their boxes at every step, and events."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jvlmm.data.moving_shapes.options import STEP_SECONDS

Box = tuple[int, int, int, int]  # x1, y1, x2, y2 in pixels, x2 and y2 exclusive

KINDS = ("circle", "square", "triangle", "cross")
COLOURS: Mapping[str, tuple[int, int, int]] = {
    "red": (235, 45, 45),
    "green": (50, 205, 70),
    "blue": (60, 110, 255),
    "yellow": (245, 220, 50),
    "purple": (205, 60, 225),
    "white": (242, 242, 242),
}
DIRECTIONS: Mapping[str, tuple[int, int]] = {
    "left": (-1, 0),
    "right": (1, 0),
    "up": (0, -1),
    "down": (0, 1),
    "up left": (-1, -1),
    "up right": (1, -1),
    "down left": (-1, 1),
    "down right": (1, 1),
}
EVENTS: Mapping[str, str] = {
    "appear": "appears",
    "vanish": "vanishes",
    "recolour": "changes colour",
    "bounce": "bounces",
    "start": "starts moving",
    "stop": "stops moving",
}


@dataclass(frozen=True)
class Event:
    """Something that happens to a shape at `step`: the first step of a new state, or where a motion turns."""

    step: int
    kind: str  # a key of EVENTS


@dataclass(frozen=True)
class Shape:
    """One object. It keeps its size; `colour` is its colour at first, and with `kind` names it in questions."""

    kind: str
    colour: str
    boxes: tuple[Box | None, ...]  # one per step, None while not visible
    direction: str | None  # None where it stays still; the first direction where it bounces
    speed: float  # pixels per step while moving, along its way
    moving: tuple[int, int] | None  # the motion lasts from the first to the second of these steps
    recolour: tuple[int, str] | None  # step and new colour
    events: tuple[Event, ...]

    @property
    def name(self) -> str:
        return f"{self.colour} {self.kind}"

    @property
    def visible(self) -> tuple[int, int]:
        """First step at which it is visible, and the step after the last."""
        steps = [k for k, box in enumerate(self.boxes) if box]
        return steps[0], steps[-1] + 1

    def colour_at(self, step: int) -> str:
        return self.recolour[1] if self.recolour and step >= self.recolour[0] else self.colour

    def direction_at(self, step: int) -> str | None:
        """The way it goes on from a step; None where it stays, or is not visible. At its last step, the way it came."""
        end = self.visible[1] - 1
        if self.moving is None or not (self.moving[0] <= step < self.moving[1] or step == self.moving[1] == end):
            return None
        turned = any(e.kind == "bounce" and step >= e.step for e in self.events)
        return opposite(self.direction) if turned else self.direction


@dataclass(frozen=True)
class Scene:
    """All that is to be drawn. Later shapes lie above earlier ones. An image is a scene of one step."""

    media: str  # path relative to the dataset
    size: int
    background: tuple[int, int, int]
    steps: int
    shapes: tuple[Shape, ...]

    @property
    def is_image(self) -> bool:
        return self.steps == 1

    def cover(self, index: int, step: int) -> float:
        """Largest share of a shape's box that one shape above or below it overlaps at a step; 1 where not visible."""
        box = self.shapes[index].boxes[step]
        if box is None:
            return 1.0
        others = (s.boxes[step] for k, s in enumerate(self.shapes) if k != index)
        return max((overlap_share(box, other) for other in others if other), default=0.0)

    def clear(self, index: int, step: int) -> bool:
        """Whether a shape is visible and so little overlapped that a question may ask about it."""
        return self.cover(index, step) <= 0.2

    def overlaps(self) -> list[dict[str, Any]]:
        """Pairs of shapes whose boxes intersect, with the seconds from and to which they do."""
        spans = []
        for a in range(len(self.shapes)):
            for b in range(a + 1, len(self.shapes)):
                touching = [_intersect(self.shapes[a].boxes[k], self.shapes[b].boxes[k]) for k in range(self.steps)]
                spans += [
                    {"objects": [self.shapes[a].name, self.shapes[b].name], "span": [seconds(i), seconds(j)]}
                    for i, j in _runs(touching)
                ]
        return spans


def seconds(step: int) -> float:
    return step * STEP_SECONDS


def opposite(direction: str) -> str:
    dx, dy = DIRECTIONS[direction]
    return next(name for name, way in DIRECTIONS.items() if way == (-dx, -dy))


def overlap_share(box: Box, other: Box) -> float:
    """Area of the intersection over the area of the smaller box."""
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / min((b[2] - b[0]) * (b[3] - b[1]) for b in (box, other))


def _intersect(box: Box | None, other: Box | None) -> bool:
    return box is not None and other is not None and overlap_share(box, other) > 0


def _runs(flags: list[bool]) -> list[tuple[int, int]]:
    edges = [k for k in range(len(flags) + 1) if (k < len(flags) and flags[k]) != (k > 0 and flags[k - 1])]
    return list(zip(edges[::2], edges[1::2], strict=True))


def scene_to_dict(scene: Scene) -> dict[str, Any]:
    """The ground truth as JSON: `tracks` hold a box per step of `step_seconds`, `events` are in order of time."""
    tracks = [
        {
            "object": s.name,
            "kind": s.kind,
            "colour": s.colour,
            "boxes": [list(box) if box else None for box in s.boxes],
            "direction": s.direction,
            "speed": s.speed,
            "moving": list(s.moving) if s.moving else None,
            "recolour": list(s.recolour) if s.recolour else None,
        }
        for s in scene.shapes
    ]
    events = [(e.step, e.kind, s.name) for s in scene.shapes for e in s.events]
    return {
        "media": scene.media,
        "size": scene.size,
        "background": list(scene.background),
        "steps": scene.steps,
        "step_seconds": STEP_SECONDS,
        "tracks": tracks,
        "events": [{"step": k, "time": seconds(k), "kind": kind, "object": name} for k, kind, name in sorted(events)],
        "overlaps": scene.overlaps(),
    }


def scene_from_dict(record: Mapping[str, Any]) -> Scene:
    """Inverse of `scene_to_dict`."""
    shapes = tuple(
        Shape(
            kind=t["kind"],
            colour=t["colour"],
            boxes=tuple(tuple(box) if box else None for box in t["boxes"]),
            direction=t["direction"],
            speed=t["speed"],
            moving=tuple(t["moving"]) if t["moving"] else None,
            recolour=tuple(t["recolour"]) if t["recolour"] else None,
            events=tuple(Event(e["step"], e["kind"]) for e in record["events"] if e["object"] == t["object"]),
        )
        for t in record["tracks"]
    )
    return Scene(record["media"], record["size"], tuple(record["background"]), record["steps"], shapes)
