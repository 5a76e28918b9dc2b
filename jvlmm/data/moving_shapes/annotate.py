"""From scenes to balanced records: which questions a split asks, and how their options are lettered.

Balance is by construction. Within a form a question is taken only while its answer is the rarest so
far, and option letters go round in shuffled blocks of four; every prefix of a split is therefore
balanced to within one question per answer and letter.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jvlmm.data.moving_shapes.generate import random_scene
from jvlmm.data.moving_shapes.options import SPLITS, MovingShapesOptions, SceneOptions, is_image
from jvlmm.data.moving_shapes.questions import FORMS, Candidate, Form
from jvlmm.data.moving_shapes.scene import Scene, seconds

LETTERS = "ABCD"
_SCENE_TRIES = 12


@dataclass
class Balance:
    """Running counts of one split: what was asked, answered and lettered so far."""

    rng: np.random.Generator
    options: SceneOptions
    asked: Counter = field(default_factory=Counter)  # per form
    keys: dict[str, Counter] = field(default_factory=lambda: defaultdict(Counter))  # per form and key
    cues: dict[tuple[str, str], Counter] = field(default_factory=lambda: defaultdict(Counter))  # keys per form and cue
    letters: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))  # what is left of a block

    def by_need(self) -> list[tuple[Form, ...]]:
        """The question types' forms, both sorted so that what lags furthest behind its share comes first."""

        def type_lag(forms: tuple[Form, ...]) -> tuple[float, float]:
            return sum(self.asked[form.name] for form in forms), self.rng.random()

        def form_lag(form: Form) -> tuple[float, float]:
            return self.asked[form.name] / form.weight, self.rng.random()

        return [tuple(sorted(forms, key=form_lag)) for forms in sorted(FORMS.values(), key=type_lag)]

    def _choose(self, form: Form, candidates: list[Candidate]) -> Candidate | None:
        """A candidate whose answer may come next, or None: one of the rarest, or no more frequent than the mean."""
        counts = self.keys[form.name]
        allowed = self.asked[form.name] / max(len(counts), 1)
        if form.domain is not None:
            allowed = min(counts[key] for key in form.domain(self.options))
        candidates = [c for c in candidates if counts[c.key] <= allowed]
        if not candidates:
            return None
        chosen = min(candidates, key=lambda c: (counts[c.key], self._excess(form, c), self.rng.random()))
        counts[chosen.key] += 1
        self.cues[form.name, chosen.cue][chosen.key] += 1
        self.asked[form.name] += 1
        return chosen

    def _excess(self, form: Form, candidate: Candidate) -> float:
        """How much more often than its fair share a key came with a cue."""
        counts = self.cues[form.name, candidate.cue]
        keys = len(form.domain(self.options)) if form.domain else 1
        return counts[candidate.key] - counts.total() / keys

    def take(self, scene: Scene, forms: tuple[Form, ...]) -> tuple[Form, Candidate] | None:
        """A question about the scene in the first of these forms that allows one."""
        for form in forms:
            chosen = self._choose(form, list(form.candidates(scene, self.options, self.rng)))
            if chosen:
                return form, chosen
        return None

    def letter(self, form: Form) -> int:
        block = self.letters[form.name]
        if not block:
            block.extend(int(k) for k in self.rng.permutation(len(LETTERS)))
        return block.pop()


def annotate(options: MovingShapesOptions, split: str) -> Iterator[tuple[Scene, list[dict[str, Any]]]]:
    """Scenes of a split with the records of their questions."""
    rng = np.random.default_rng([options.seed, SPLITS.index(split)])
    balance = Balance(rng, options.scenes_of(split))
    clips, images = options.counts(split)
    for row in range(clips + images):
        still = is_image(row, clips, images)
        media = f"images/{split}_{row:06d}.png" if still else f"videos/{split}_{row:06d}.mp4"
        wanted = options.questions_per_image if still else options.questions_per_clip
        scene, asked = _scene_with_questions(balance, media, options.size, still, wanted)
        yield scene, [_record(scene, form, candidate, balance, row) for form, candidate in asked]


def _scene_with_questions(
    balance: Balance, media: str, size: int, still: bool, wanted: int
) -> tuple[Scene, list[tuple[Form, Candidate]]]:
    """A scene, drawn anew until it allows a question of the type most needed, and up to `wanted` of its questions."""
    numbers = range(balance.options.min_shapes, balance.options.max_shapes + 1)
    shares = np.array([0.5 if n == 1 else 1.0 for n in numbers])  # one shape alone allows no comparison
    first, *others = balance.by_need()
    for _ in range(1 if still else _SCENE_TRIES):
        num_shapes = int(balance.rng.choice(numbers, p=shares / shares.sum()))
        scene = random_scene(balance.rng, balance.options, media, size, still, num_shapes)
        question = balance.take(scene, first)
        if question:
            break
    asked = [question] if question else []
    for forms in others:
        if len(asked) == wanted:
            break
        question = balance.take(scene, forms)
        asked += [question] if question else []
    return scene, asked


def _record(scene: Scene, form: Form, candidate: Candidate, balance: Balance, row: int) -> dict[str, Any]:
    """The flat record that is stored, with the thought closed by its conclusion."""
    options: list[str] = []
    answer, conclusion = candidate.answer, candidate.evidence
    if form.answer_type == "mcq":
        wrong = [c for c in candidate.choices if c != candidate.answer]
        options = [wrong[k] for k in balance.rng.permutation(len(wrong))[: len(LETTERS) - 1]]
        place = balance.letter(form)
        options.insert(place, candidate.answer)
        answer, conclusion = LETTERS[place], f"{candidate.evidence} {LETTERS[place]}"
    stem = scene.media.rsplit("/", 1)[1].replace(".", "-")
    return {
        "id": f"moving-shapes/{stem}/{form.name}",
        "scene": row,
        "question": candidate.question,
        "options": options,
        "answer": answer,
        "answer_text": candidate.answer,
        "answer_type": form.answer_type,
        "question_type": form.question_type,
        "form": form.name,
        "response": f"<think>{conclusion}.</think><answer>{answer}</answer>",
        "cited": [{"object": name, "step": step, "time": seconds(step)} for name, step in candidate.cited],
    }
