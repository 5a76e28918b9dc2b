"""The words of a thought: objects, boxes, times, and what follows from them."""

from collections.abc import Iterable

from jvlmm.data.moving_shapes.options import STEP_SECONDS
from jvlmm.data.moving_shapes.scene import DIRECTIONS, EVENTS, Box, Event, Scene, Shape, seconds


def box_text(box: Box) -> str:
    return f"[{','.join(str(v) for v in box)}]"


def time(step: int) -> str:
    return f"<t>{seconds(step):.1f}</t>s"


def at(scene: Scene, step: int) -> str:
    return "" if scene.is_image else f" at {time(step)}"


def named(shape: Shape) -> str:
    return f"<obj>{shape.name}</obj>"


def box(shape: Shape, step: int) -> str:
    return f"<box>{box_text(shape.boxes[step])}</box>"


def place(shape: Shape, step: int) -> str:
    return named(shape) + box(shape, step)


def cite(scene: Scene, shape: Shape, step: int) -> str:
    return place(shape, step) + at(scene, step)


def pace(shape: Shape) -> str:
    return f"{round(shape.speed / STEP_SECONDS)} pixels a second"


def reading_order(views: Iterable[tuple[Shape, int]]) -> list[tuple[Shape, int]]:
    """Shapes seen at steps, by time, then from left to right: the order every listing keeps."""
    return sorted(views, key=lambda view: (view[1], view[0].boxes[view[1]]))


def growth(direction: str) -> str:
    """How the coordinates change along a direction: "x grows", "x shrinks and y grows", …"""
    changes = zip("xy", DIRECTIONS[direction], strict=True)
    return " and ".join(f"{axis} {'grows' if sign > 0 else 'shrinks'}" for axis, sign in changes if sign)


def event_steps(event: Event) -> tuple[int, ...]:
    """Steps at which the shape must be seen to tell the event."""
    around = {
        "appear": (0,),
        "vanish": (-1,),
        "recolour": (-1, 0),
    }
    return tuple(event.step + offset for offset in around.get(event.kind, (-1, 0, 1)))


def follow(shape: Shape) -> str:
    """What a shape does at every step of its clip."""
    return timeline(shape, range(len(shape.boxes)))


def timeline(shape: Shape, steps: Iterable[int]) -> str:
    """What a shape does at each of the steps: "0.0 red circle still 0.5 red circle starts moving"."""
    return " ".join(f"{seconds(step):.1f} {shape.name} {_doing(shape, step)}" for step in steps)


def _doing(shape: Shape, step: int) -> str:
    """The events of a step, or else the way the shape goes on."""
    events = [EVENTS[event.kind] for event in shape.events if event.step == step]
    if events:
        return " and ".join(events)
    if shape.boxes[step] is None:
        return "not there"
    return shape.direction_at(step) or "still"
