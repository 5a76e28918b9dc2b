"""Descriptions of a scene in plain mechanical text: dense supervision for a model that learns to see."""

from collections.abc import Callable, Mapping

import numpy as np

from jvlmm.data.moving_shapes.evidence import at, box, cite, follow, growth, named, pace, place, reading_order, time
from jvlmm.data.moving_shapes.questions import corner_of, pick
from jvlmm.data.moving_shapes.scene import EVENTS, Scene, Shape, seconds

_SECOND = 2  # steps


def _objects(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    question = pick(rng, "List all objects.", "Which objects are there, and where?")
    return question, "; ".join(cite(scene, shape, step) for shape, step in _first_views(scene)) + "."


def _names(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    question = pick(rng, "Name the objects.", "What is there?")
    return question, ", ".join(shape.name for shape, _ in _first_views(scene)) + "."


def _places(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    question = pick(rng, "Where is each object at first?", "In which corner is each object at first?")
    places = (f"{shape.name} {corner_of(shape.boxes[step], scene.size)}" for shape, step in _first_views(scene))
    return question, ", ".join(places) + "."


def _ways(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    question = pick(rng, "Which way does each object move?", "In which direction does each object move?")
    ways = (f"{shape.name} {shape.direction or 'stays still'}" for shape, _ in _first_views(scene))
    return question, ", ".join(ways) + "."


def _first_views(scene: Scene) -> list[tuple[Shape, int]]:
    return reading_order((shape, shape.visible[0]) for shape in scene.shapes)


def _track(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    shape = scene.shapes[rng.integers(len(scene.shapes))]
    templates = ("Track the {}.", "Where is the {} second by second?")
    question = pick(rng, *(("What is the box of the {}?",) if scene.is_image else templates)).format(shape.name)
    first, end = shape.visible
    steps = sorted({*range(first, end, _SECOND), end - 1})
    views = ", ".join(box(shape, k) + at(scene, k) for k in steps)
    return question, f"{named(shape)}{views}."


def _motion(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    shape = scene.shapes[rng.integers(len(scene.shapes))]
    question = pick(rng, "Describe how the {} moves.", "How does the {} move?").format(shape.name)
    first, last = shape.visible[0], shape.visible[1] - 1
    turn = next((e.step for e in shape.events if e.kind == "bounce"), None)
    views = (first, last) if turn is None else (first, turn, last)
    boxes = ", ".join(f"{box(shape, k)} at {time(k)}" for k in views)
    if shape.direction is None:
        return question, f"{named(shape)}{boxes}: stays still."
    bounced = f", bounces at {time(turn)}" if turn is not None else ""
    way = f"{growth(shape.direction)}, moves {shape.direction}, {pace(shape)}{bounced}"
    return question, f"{named(shape)}{boxes}: {way}."


def _timeline(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    shape = scene.shapes[rng.integers(len(scene.shapes))]
    question = pick(rng, "What does the {} do, step by step?", "Follow the {} in time.").format(shape.name)
    return question, f"{follow(shape)}."


def _visible(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    step = int(rng.integers(scene.steps))
    if scene.is_image:
        question = pick(rng, "What is visible?", "Which shapes are visible?")
    else:
        question = pick(rng, "What is visible at {:.1f}s?", "Which shapes are visible at {:.1f}s?")
    shown = [shape for shape, _ in reading_order((s, step) for s in scene.shapes if s.boxes[step])]
    places = ", ".join(f"<obj>{s.colour_at(step)} {s.kind}</obj>" + place(s, step).split("</obj>")[1] for s in shown)
    noun = "shape" if len(shown) == 1 else "shapes"
    return question.format(seconds(step)), f"{len(shown)} {noun}{at(scene, step)}" + (f": {places}." if shown else ".")


def _events(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    question = pick(rng, "What happens in the video?", "List all events in order.")
    events = sorted(((e, s) for s, _ in _first_views(scene) for e in s.events), key=lambda pair: pair[0].step)
    if not events:
        return question, "nothing happens."
    return question, "; ".join(_event_of(s, e) for e, s in events) + "."


def _event_of(shape: Shape, event) -> str:
    step = event.step - 1 if event.kind == "vanish" else event.step
    new = f" to {shape.recolour[1]}" if event.kind == "recolour" else ""
    return f"<t>{seconds(event.step):.1f}</t>s {place(shape, step)} {EVENTS[event.kind]}{new}"


CAPTIONS: Mapping[str, Callable[[Scene, np.random.Generator], tuple[str, str]]] = {
    "caption_objects": _objects,
    "caption_track": _track,
    "caption_visible": _visible,
    "caption_motion": _motion,
    "caption_events": _events,
    "caption_names": _names,
    "caption_places": _places,
    "caption_ways": _ways,
    "caption_timeline": _timeline,
}
# Those that suit an image.
STILL_CAPTIONS = ("caption_objects", "caption_track", "caption_visible", "caption_names", "caption_places")


def caption(name: str, scene: Scene, seed: tuple[int, ...]) -> tuple[str, str]:
    """Instruction and description of one kind; `seed` picks the wording, the object and the time."""
    return CAPTIONS[name](scene, np.random.default_rng([*seed, tuple(CAPTIONS).index(name)]))
