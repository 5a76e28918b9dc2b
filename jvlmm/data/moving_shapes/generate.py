"""Random scenes that keep the promises questions rely on: integer boxes, the half-second grid, little overlap."""

from dataclasses import replace

import numpy as np

from jvlmm.data.moving_shapes.options import STEP_SECONDS, SceneOptions
from jvlmm.data.moving_shapes.scene import COLOURS, DIRECTIONS, KINDS, Event, Scene, Shape, overlap_share
from jvlmm.errors import DataError

_PROFILES = ("appear", "vanish", "appear vanish", "recolour", "bounce", "start", "stop", "start stop")
_PROFILE_SHARES = np.array([1, 1, 1.5, 1.2, 1.5, 1, 1, 1.5]) / 9.7
_MOVING_SHARE = 0.7  # of shapes whose profile does not decide whether they move
_ALL_STILL_SHARE = 0.1  # of scenes in which nothing moves: without them "neither moves" is rare
_ONE_SPEED_SHARE = 0.2  # of scenes in which all that moves is equally fast
_SAME_TIME_SHARE = 0.3  # of events placed at the time of another shape's event
_REFERENCE_SIZE = 84
_SHAPE_TRIES = 40
_SCENE_TRIES = 100


def random_scene(
    rng: np.random.Generator, options: SceneOptions, media: str, size: int, still: bool, num_shapes: int
) -> Scene:
    """Draw a scene; a shape is never overlapped by more than half, in an image by no more than a fifth."""
    length = int(rng.integers(options.min_seconds, options.max_seconds + 1))
    steps = 1 if still else round(length / STEP_SECONDS)
    level = int(rng.integers(104, 122))  # near the mean that images are normalised with: the ground is close to 0
    background = tuple(int(v) for v in np.clip(level + rng.integers(-5, 6, 3), 0, 255))
    for _ in range(_SCENE_TRIES):
        shapes = _random_shapes(rng, options, size, steps, num_shapes)
        if shapes is not None:
            return Scene(media, size, background, steps, shapes)
    raise DataError(
        f"moving shapes: {num_shapes} shapes of {options.max_shape_pixels} pixels do not fit; "
        "use fewer (max_shapes) or smaller ones (max_shape_pixels)"
    )


def _random_shapes(rng, options: SceneOptions, size: int, steps: int, num_shapes: int) -> tuple[Shape, ...] | None:
    colours = [str(c) for c in rng.permutation(list(COLOURS))]
    shapes: list[Shape] = []
    spare = colours[num_shapes:]
    options = _mood(rng, options)
    allowed = 0.2 if steps == 1 else 0.5
    for colour in colours[:num_shapes]:
        for _ in range(_SHAPE_TRIES):
            shape = _random_shape(rng, options, size, steps, colour, spare, [e.step for s in shapes for e in s.events])
            if all(_overlap(shape, other) <= allowed for other in shapes):
                break
        else:
            return None
        shapes.append(shape)
        if shape.recolour:
            spare = [c for c in spare if c != shape.recolour[1]]
    return tuple(shapes)


def _mood(rng, options: SceneOptions) -> SceneOptions:
    """Some scenes have a single speed, or none, so that answers such as "both the same" come up often enough."""
    draw = rng.random()
    if draw < _ALL_STILL_SHARE:
        return replace(options, speeds=(0,))
    if draw < _ALL_STILL_SHARE + _ONE_SPEED_SHARE:
        return replace(options, speeds=(options.speeds[rng.integers(len(options.speeds))],))
    return options


def _overlap(shape: Shape, other: Shape) -> float:
    pairs = zip(shape.boxes, other.boxes, strict=True)
    return max((overlap_share(a, b) for a, b in pairs if a and b), default=0.0)


def _random_shape(rng, options: SceneOptions, size: int, steps: int, colour: str, spare, event_steps) -> Shape:
    unit = max(round(options.lattice_pixels * size / _REFERENCE_SIZE), 1)
    smallest, largest, *speeds = (
        pixels // options.lattice_pixels
        for pixels in (options.min_shape_pixels, options.max_shape_pixels, *options.speeds)
    )
    width = int(rng.integers(smallest, largest + 1))
    kind = KINDS[rng.integers(len(KINDS))]
    profile = _random_profile(rng, options, steps, bool(spare))
    visible, moving, turn, recolour_step = _random_times(rng, profile, steps, event_steps)
    room = size // unit - width
    moving, turn, speed = _fitting_motion(rng, moving, turn, speeds, room)
    direction = list(DIRECTIONS)[rng.integers(options.directions)] if moving else None
    path = [(x * unit, y * unit) for x, y in _random_path(rng, steps, room, direction, speed, moving, turn)]
    seen, side = range(*visible), width * unit
    boxes = tuple((x, y, x + side, y + side) if k in seen else None for k, (x, y) in enumerate(path))
    events = _events(visible, moving, turn, recolour_step, steps)
    recolour = (recolour_step, str(spare[rng.integers(len(spare))])) if recolour_step is not None else None
    distance = speed * unit * float(np.hypot(*DIRECTIONS[direction])) if direction else 0.0
    return Shape(kind, colour, boxes, direction, round(distance, 3), moving, recolour, events)


def _random_profile(rng, options: SceneOptions, steps: int, can_recolour: bool) -> str:
    if steps == 1:
        return "still"
    if rng.random() < options.plain_share:
        return "plain"
    profile = str(rng.choice(_PROFILES, p=_PROFILE_SHARES))
    return "plain" if profile == "recolour" and not can_recolour else profile


def _random_times(rng, profile: str, steps: int, event_steps: list[int]):
    """Visible [first, after last), moving (from, to) or None, turning step or None, recolouring step or None."""

    def step(low: int, high: int) -> int:
        shared = [k for k in event_steps if low <= k <= high]
        if shared and rng.random() < _SAME_TIME_SHARE:
            return shared[rng.integers(len(shared))]
        return int(rng.integers(low, high + 1))

    visible, moving, last = (0, steps), None, steps - 1
    if profile in ("appear", "vanish", "appear vanish"):
        first = step(1, steps - 3) if profile != "vanish" else 0
        latest = min(first + steps // 2, steps - 1) if profile != "vanish" else steps - 1
        end = step(first + 2, latest) if profile != "appear" else steps
        visible = (first, end)
    if profile in ("start", "stop", "start stop"):
        begin = step(1, steps - (3 if profile == "start" else 4)) if profile != "stop" else 0
        latest = min(begin + steps // 2, steps - 2) if profile != "stop" else steps - 2
        end = step(begin + 2, latest) if profile != "start" else last
        return visible, (begin, end), None, None
    if profile == "bounce":
        return visible, (0, last), step(2, steps - 3), None
    if profile != "still" and rng.random() < _MOVING_SHARE:
        moving = (visible[0], visible[1] - 1)
    return visible, moving, None, step(1, last) if profile == "recolour" else None


def _fitting_motion(rng, moving, turn, speeds: list[int], room: int):
    """A speed whose way fits into the frame. A motion too long for any stops earlier, or is none where it turns."""
    if moving is None:
        return None, None, 0
    begin, end = moving
    longest = max(turn - begin, end - turn) if turn is not None else end - begin
    fitting = [s for s in speeds if s * longest <= room]
    if not fitting and turn is None:
        fitting = [min(speeds)]
        end = begin + room // min(speeds)
    speed = int(fitting[rng.integers(len(fitting))]) if fitting else 0
    return ((begin, end), turn, speed) if speed else (None, None, 0)


def _random_path(rng, steps: int, room: int, direction, speed: int, moving, turn) -> list[tuple[int, int]]:
    """Top left corner at every step, in units of the lattice; a bouncing shape touches the wall at its turning step."""
    if direction is None:
        x, y = (int(v) for v in rng.integers(0, room + 1, 2))
        return [(x, y)] * steps
    travelled = np.clip(np.arange(steps) - moving[0], 0, moving[1] - moving[0])
    if turn is not None:
        travelled = turn - np.abs(np.arange(steps) - turn)
    axes = []
    for sign in DIRECTIONS[direction]:
        offsets = sign * speed * travelled
        low, high = -int(offsets.min()), room - int(offsets.max())
        start = int(rng.integers(low, high + 1))
        if turn is not None and sign:
            start = high if sign > 0 else low
        axes.append(start + offsets)
    return [(int(x), int(y)) for x, y in zip(*axes, strict=True)]


def _events(visible, moving, turn, recolour_step, steps: int) -> tuple[Event, ...]:
    events = []
    if visible[0] > 0:
        events.append(Event(visible[0], "appear"))
    if visible[1] < steps:
        events.append(Event(visible[1], "vanish"))
    if moving and moving[0] > visible[0]:
        events.append(Event(moving[0], "start"))
    if moving and moving[1] < visible[1] - 1:
        events.append(Event(moving[1], "stop"))
    if turn is not None:
        events.append(Event(turn, "bounce"))
    if recolour_step is not None:
        events.append(Event(recolour_step, "recolour"))
    return tuple(sorted(events, key=lambda e: e.step))
