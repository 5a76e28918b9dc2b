"""Every question a scene allows: unambiguous, answerable at two frames per second, with its chain of evidence.

A candidate's `key` names its answer within its form; the split keeps all keys of a form equally frequent.
Its `cue` is what the words of the question alone might tell about the answer, such as the time of an
event; the split keeps the keys even for every cue as well as the scenes allow.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from jvlmm.data.example import AnswerType
from jvlmm.data.moving_shapes import evidence
from jvlmm.data.moving_shapes.options import SceneOptions
from jvlmm.data.moving_shapes.scene import COLOURS, DIRECTIONS, EVENTS, KINDS, Scene, Shape, seconds

QUADRANTS = ("top left", "top right", "bottom left", "bottom right")
_MIN_SPAN_STEPS = 2  # spans last a second at least and half the clip at most, so that no fixed guess does well
_ABSENT_DRAWS = 2  # pairs of events that do not happen, per pair of shapes


@dataclass(frozen=True)
class Candidate:
    """A question with its answer as a text, before options are lettered.

    For multiple choice, `choices` holds the texts the wrong options are drawn from. `evidence` is the
    thought, which then ends in the words of the right option; `cited` are the shapes and steps it looks at.
    """

    key: str
    question: str
    answer: str
    evidence: str
    cited: tuple[tuple[str, int], ...]
    choices: tuple[str, ...] = ()
    cue: str = ""


@dataclass(frozen=True)
class Form:
    """One way of asking: its candidates in a scene are balanced over their keys."""

    name: str
    question_type: str
    answer_type: AnswerType
    weight: int  # relative frequency within its question type; attribute texts go by the number of answers
    candidates: Callable[[Scene, SceneOptions, np.random.Generator], Iterator[Candidate]]
    domain: Callable[[SceneOptions], tuple[str, ...]] | None = None  # all keys; None where there are too many to list


def pick(rng: np.random.Generator, *templates: str) -> str:
    """One of several wordings."""
    return templates[rng.integers(len(templates))]


def _unique(scene: Scene, attribute: str) -> Iterator[tuple[int, Shape]]:
    """Shapes that never change colour and whose attribute no other shape shares."""
    for index, shape in enumerate(scene.shapes):
        values = [getattr(s, attribute) for s in scene.shapes]
        if values.count(getattr(shape, attribute)) == 1 and shape.recolour is None:
            yield index, shape


def _clear_step(scene: Scene, index: int) -> int | None:
    """The first step at which a shape is clearly seen."""
    return next((k for k in range(scene.steps) if scene.clear(index, k)), None)


def colour(scene: Scene, options: SceneOptions, rng: np.random.Generator) -> Iterator[Candidate]:
    for index, shape in _unique(scene, "kind"):
        step = _clear_step(scene, index)
        if step is None:
            continue
        question = pick(rng, "What colour is the {}?", "Which colour does the {} have?").format(shape.kind)
        seen = f"{evidence.named(shape)}: the {shape.kind} is {shape.colour}"
        yield Candidate(shape.colour, question, shape.colour, seen, ((shape.name, step),), tuple(COLOURS))


def kind(scene: Scene, options: SceneOptions, rng: np.random.Generator) -> Iterator[Candidate]:
    for index, shape in _unique(scene, "colour"):
        step = _clear_step(scene, index)
        if step is None:
            continue
        question = pick(rng, "What shape is the {} object?", "Which shape does the {} object have?")
        seen = f"{evidence.named(shape)}: the {shape.colour} object is a {shape.kind}"
        yield Candidate(shape.kind, question.format(shape.colour), shape.kind, seen, ((shape.name, step),), KINDS)


def count_all(scene: Scene, options: SceneOptions, rng: np.random.Generator) -> Iterator[Candidate]:
    steps = [_clear_step(scene, index) for index in range(len(scene.shapes))]
    if None in steps:
        return
    medium = "image" if scene.is_image else "video"
    question = pick(rng, "How many shapes are there in the {}?", "Count all shapes in the {}.").format(medium)
    yield _count(scene, question, [(s, k) for s, k in zip(scene.shapes, steps, strict=True)], ())


def count_at(scene: Scene, options: SceneOptions, rng: np.random.Generator) -> Iterator[Candidate]:
    """The four largest possible numbers are asked for, so that four options suffice."""
    numbers = _numbers_at(options)
    for step in range(scene.steps) if not scene.is_image else ():
        shown = [i for i, s in enumerate(scene.shapes) if s.boxes[step]]
        if str(len(shown)) not in numbers or not all(scene.clear(i, step) for i in shown):
            continue
        template = pick(rng, "How many shapes are visible at {:.1f}s?", "Count the shapes at {:.1f}s.")
        question = template.format(seconds(step))
        yield _count(scene, question, [(scene.shapes[i], step) for i in shown], numbers, step)


def _count(scene, question: str, shown: list[tuple[Shape, int]], numbers, step: int | None = None) -> Candidate:
    shown = evidence.reading_order(shown)
    total = str(len(shown))
    when = "" if step is None or not shown else f" at {evidence.time(step)}"
    seen = ", ".join(evidence.named(s) for s, _ in shown) if shown else f"nothing is visible at {evidence.time(step)}"
    return Candidate(total, question, total, f"{seen}{when}, so {total}", _names(shown), numbers, str(step))


def _names(shown: list[tuple[Shape, int]]) -> tuple[tuple[str, int], ...]:
    return tuple((shape.name, step) for shape, step in shown)


def position(scene: Scene, options: SceneOptions, rng: np.random.Generator) -> Iterator[Candidate]:
    for shape, step in _clear_views(scene):
        quadrant = quadrant_of(shape.boxes[step], scene.size)
        if quadrant is None:
            continue
        question = pick(rng, "Where is the {}{}?", "In which corner is the {}{}?")
        question = question.format(shape.name, _at_time(scene, step))
        where = f"is {quadrant}, {evidence.box(shape, step)}: it is {quadrant}"
        seen = f"{evidence.named(shape)}{evidence.at(scene, step)} {where}"
        yield Candidate(quadrant, question, quadrant, seen, ((shape.name, step),), QUADRANTS)


def quadrant_of(box, size: int) -> str | None:
    """The quadrant of a box's centre; None where it is nearer than a tenth of the frame to a middle line."""
    dx, dy = (box[0] + box[2] - size) / 2, (box[1] + box[3] - size) / 2
    if min(abs(dx), abs(dy)) < size / 10:
        return None
    return corner_of(box, size)


def corner_of(box, size: int) -> str:
    """The quadrant of a box's centre, however near to a middle line."""
    dx, dy = box[0] + box[2] - size, box[1] + box[3] - size
    return f"{'top' if dy < 0 else 'bottom'} {'left' if dx < 0 else 'right'}"


def _clear_views(scene: Scene) -> Iterator[tuple[Shape, int]]:
    """Shapes and steps at which they are clearly seen in the colour that names them."""
    for index, shape in enumerate(scene.shapes):
        end = shape.recolour[0] if shape.recolour else scene.steps
        yield from ((shape, k) for k in range(end) if scene.clear(index, k))


def _at_time(scene: Scene, step: int) -> str:
    return "" if scene.is_image else f" at {seconds(step):.1f}s"


def boxes(scene: Scene, options: SceneOptions, rng: np.random.Generator) -> Iterator[Candidate]:
    for shape, step in _clear_views(scene):
        question = pick(rng, "Give the box of the {}{}.", "What is the box of the {}{}?")
        answer = evidence.box_text(shape.boxes[step])
        key = f"{shape.name} {answer}"
        question = question.format(shape.name, _at_time(scene, step))
        yield Candidate(key, question, answer, evidence.cite(scene, shape, step), ((shape.name, step),))


def direction(scene: Scene, options: SceneOptions, rng: np.random.Generator) -> Iterator[Candidate]:
    choices = tuple(DIRECTIONS)[: options.directions]
    for index, shape in enumerate(scene.shapes):
        if shape.moving is None or any(e.kind == "bounce" for e in shape.events):
            continue
        first, last = shape.visible[0], shape.visible[1] - 1
        way = max(abs(a - b) for a, b in zip(shape.boxes[first], shape.boxes[last], strict=True))
        if way < scene.size / 10 or not (scene.clear(index, first) and scene.clear(index, last)):
            continue
        question = pick(rng, "Which way does the {} move?", "In which direction does the {} move?").format(shape.name)
        views = " to ".join(f"{evidence.box(shape, k)} at {evidence.time(k)}" for k in (first, last))
        seen = f"{evidence.named(shape)} moves {shape.direction} from {views}, so it moves {shape.direction}"
        cited = ((shape.name, first), (shape.name, last))
        yield Candidate(shape.direction, question, shape.direction, seen, cited, choices)


def speed(scene: Scene, options: SceneOptions, rng: np.random.Generator) -> Iterator[Candidate]:
    """Two shapes over the same time: one is at least 1.6 times faster, both are equally fast, or both stay still."""
    for a in range(len(scene.shapes)):
        for b in range(len(scene.shapes)):
            window = _common_window(scene, a, b) if a != b else None
            if window is None:
                continue
            one, two = scene.shapes[a], scene.shapes[b]
            key = _compare_speeds(one.speed, two.speed)
            if key is None:
                continue
            template = pick(rng, "Which moves faster, {} or {}?", "Which is faster, {} or {}?")
            texts = {"first": _the(one), "second": _the(two), "same": "both the same", "neither": "neither moves"}
            seen = ", ".join(f"{evidence.named(s)} moves {evidence.pace(s)}" for s in (one, two))
            end = f"so faster: {texts[key]}" if key in ("first", "second") else f"so {texts[key]}"
            question = template.format(_the(one), _the(two))
            yield Candidate(key, question, texts[key], f"{seen}, {end}", (), tuple(texts.values()))


def _the(shape: Shape) -> str:
    return f"the {shape.name}"


def _common_window(scene: Scene, a: int, b: int) -> tuple[int, int] | None:
    """First and last step at which both shapes move (or rest) all the time between and are clearly seen."""
    first, last = 0, scene.steps - 1
    for shape in (scene.shapes[a], scene.shapes[b]):
        if any(e.kind == "bounce" for e in shape.events):
            return None
        begin, end = shape.moving or (shape.visible[0], shape.visible[1] - 1)
        first, last = max(first, begin), min(last, end)
    seen = [k for k in range(first, last + 1) if scene.clear(a, k) and scene.clear(b, k)]
    return (seen[0], seen[-1]) if seen and seen[-1] - seen[0] >= 2 else None


def _compare_speeds(one: float, two: float) -> str | None:
    if one == two:
        return "same" if one else "neither"
    if min(one, two) == 0 or max(one, two) < 1.6 * min(one, two):
        return None
    return "first" if one > two else "second"


def event(scene: Scene, options: SceneOptions, rng: np.random.Generator) -> Iterator[Candidate]:
    choices = tuple(f"it {text}" for text in EVENTS.values())
    for index, shape in enumerate(scene.shapes):
        for happening in shape.events:
            steps = evidence.event_steps(happening)
            if not 2 <= happening.step <= scene.steps - 3 or not all(scene.clear(index, k) for k in steps):
                continue  # nearer to the ends, not every kind of event can be
            if [e.step for e in shape.events].count(happening.step) > 1:
                continue  # a colour may change just where a motion ends
            question = pick(rng, "What happens to the {} at {:.1f}s?", "What does the {} do at {:.1f}s?")
            question = question.format(shape.name, seconds(happening.step))
            answer = f"it {EVENTS[happening.kind]}"
            view = happening.step - (happening.kind == "vanish")  # where the shape can be seen
            around = evidence.timeline(shape, range(happening.step - 1, happening.step + 2))
            seen = f"{evidence.place(shape, view)} {around}, so {answer}"
            cited, cue = tuple((shape.name, k) for k in steps), str(happening.step)
            yield Candidate(happening.kind, question, answer, seen, cited, choices, cue)


def order(scene: Scene, options: SceneOptions, rng: np.random.Generator) -> Iterator[Candidate]:
    """Which of two shapes' events comes first; both may come at once, or neither happen."""
    shapes = range(0 if scene.is_image else len(scene.shapes))
    for a, b in ((a, b) for a in shapes for b in shapes if a != b):
        one, two = scene.shapes[a], scene.shapes[b]
        for first in one.events:
            for second in two.events:
                if _event_clear(scene, a, first) and _event_clear(scene, b, second):
                    key = "same" if first.step == second.step else "first" if first.step < second.step else "second"
                    yield _order(rng, one, two, first.kind, second.kind, key, (first.step, second.step))
        absent = [[k for k in EVENTS if k not in {e.kind for e in s.events}] for s in (one, two)]
        for _ in range(_ABSENT_DRAWS):
            kinds = [str(k[rng.integers(len(k))]) for k in absent]
            yield _order(rng, one, two, *kinds, "neither", None)


def _event_clear(scene: Scene, index: int, happening) -> bool:
    return all(scene.clear(index, k) for k in evidence.event_steps(happening))


def _order(rng, one: Shape, two: Shape, kind_one: str, kind_two: str, key: str, steps) -> Candidate:
    happenings = [f"{_the(s)} {EVENTS[k]}" for s, k in ((one, kind_one), (two, kind_two))]
    texts = {"first": happenings[0], "second": happenings[1], "same": "both at once", "neither": "neither happens"}
    question = pick(rng, "What happens first: {} or {}?", "Which comes first: {} or {}?").format(*happenings)
    views = ((one, kind_one, steps and steps[0]), (two, kind_two, steps and steps[1]))
    cited = tuple((s.name, step - (k == "vanish")) for s, k, step in views if step is not None)
    facts = (
        f"{evidence.follow(s)}: {EVENTS[k]} {'never' if step is None else f'at {evidence.time(step)}'}"
        for s, k, step in views
    )
    end = f"first: {texts[key]}" if key in ("first", "second") else texts[key]
    seen = f"{', '.join(facts)}, so {end}"
    return Candidate(key, question, texts[key], seen, cited, tuple(texts.values()), f"{kind_one} {kind_two}")


def span(scene: Scene, options: SceneOptions, rng: np.random.Generator) -> Iterator[Candidate]:
    for index, shape in enumerate(scene.shapes):
        first, last = shape.visible[0], shape.visible[1] - 1
        if (first, last) != (0, scene.steps - 1):
            question = pick(rng, "When is the {} visible?", "From when to when is the {} visible?")
            yield from _span(scene, index, question, (first, last), last + 1, ("appears", "vanishes"))
        elif shape.moving and all(e.kind != "bounce" for e in shape.events):
            question = pick(rng, "When does the {} move?", "From when to when does the {} move?")
            end = scene.steps if shape.moving[1] == last else shape.moving[1]
            yield from _span(scene, index, question, shape.moving, end, ("starts moving", "stops moving"))


def _span(scene: Scene, index: int, question: str, cited: tuple[int, int], end: int, verbs) -> Iterator[Candidate]:
    """`cited` are the first and last step to look at; the span ends at step `end`."""
    shape, begin = scene.shapes[index], cited[0]
    if not _MIN_SPAN_STEPS <= end - begin <= scene.steps // 2 or not all(scene.clear(index, k) for k in cited):
        return
    answer = f"{evidence.time(begin)} to {evidence.time(end)}"
    first_verb = verbs[0] if begin else "is there" if verbs[0] == "appears" else "moves"
    last_verb = verbs[1] if end < scene.steps else "goes on to the end,"
    seen = (
        f"{evidence.follow(shape)}: {evidence.box(shape, begin)} {first_verb} at "
        f"{evidence.time(begin)}, {evidence.box(shape, cited[1])} {last_verb} at "
        f"{evidence.time(end)}"
    )
    yield Candidate(f"{begin}-{end}", question.format(shape.name), answer, seen, tuple((shape.name, k) for k in cited))


def _numbers_at(options: SceneOptions) -> tuple[str, ...]:
    return tuple(str(n) for n in range(max(options.max_shapes - 3, 0), max(options.max_shapes, 3) + 1))


def _numbers(options: SceneOptions) -> tuple[str, ...]:
    return tuple(str(n) for n in range(options.min_shapes, options.max_shapes + 1))


def _relations(options: SceneOptions) -> tuple[str, ...]:
    return ("first", "second", "same", "neither")


def _ways(options: SceneOptions) -> tuple[str, ...]:
    return tuple(DIRECTIONS)[: options.directions]


_FORM_LIST = (
    Form("colour", "attribute", "mcq", 15, colour, lambda options: tuple(COLOURS)),
    Form("kind", "attribute", "mcq", 15, kind, lambda options: KINDS),
    Form("colour_text", "attribute", "text", 6, colour, lambda options: tuple(COLOURS)),
    Form("kind_text", "attribute", "text", 4, kind, lambda options: KINDS),
    Form("count_all", "count", "number", 4, count_all, _numbers),
    Form("count_at", "count", "mcq", 4, count_at, _numbers_at),
    Form("position", "position", "mcq", 6, position, lambda options: QUADRANTS),
    Form("position_text", "position", "text", 2, position, lambda options: QUADRANTS),
    Form("direction", "direction", "mcq", 6, direction, _ways),
    Form("direction_text", "direction", "text", 2, direction, _ways),
    Form("speed", "speed", "mcq", 8, speed, _relations),
    Form("order", "order", "mcq", 8, order, _relations),
    Form("event", "event", "mcq", 8, event, lambda options: tuple(EVENTS)),
    Form("span", "span", "span", 8, span),
    Form("boxes", "boxes", "boxes", 8, boxes),
)
FORMS: Mapping[str, tuple[Form, ...]] = {
    question_type: tuple(form for form in _FORM_LIST if form.question_type == question_type)
    for question_type in dict.fromkeys(form.question_type for form in _FORM_LIST)
}
