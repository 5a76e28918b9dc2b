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
from jvlmm.data.moving_shapes.options import SPLITS, MovingShapesOptions, SceneOptions
from jvlmm.data.moving_shapes.questions import FORMS, Candidate, Form
from jvlmm.data.moving_shapes.scene import Scene, seconds

LETTERS = "ABCD"
_OPEN_SHARE = 0.02  # largest share of one answer in forms whose answers are too many to list


@dataclass
class Balance:
    """Running counts of one split: what was asked, answered and lettered so far."""

    rng: np.random.Generator
    options: SceneOptions
    asked: Counter = field(default_factory=Counter)  # per form
    keys: dict[str, Counter] = field(default_factory=lambda: defaultdict(Counter))  # per form and key
    letters: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))  # what is left of a block

    def by_need(self) -> list[tuple[Form, ...]]:
        """The question types' forms, both sorted so that what lags furthest behind its share comes first."""
        lag = {
            form.name: (self.asked[form.name] / form.weight, self.rng.random()) for t in FORMS.values() for form in t
        }
        types = sorted(
            FORMS.values(), key=lambda forms: (sum(self.asked[f.name] for f in forms), lag[forms[0].name][1])
        )
        return [tuple(sorted(forms, key=lambda form: lag[form.name])) for forms in types]

    def choose(self, form: Form, candidates: list[Candidate]) -> Candidate | None:
        """A candidate whose answer may come next, or None."""
        counts = self.keys[form.name]
        allowed = self.asked[form.name] * _OPEN_SHARE
        if form.domain is not None:
            allowed = min(counts[key] for key in form.domain(self.options))
        candidates = [c for c in candidates if counts[c.key] <= allowed]
        if not candidates:
            return None
        rarest = min(counts[c.key] for c in candidates)
        candidates = [c for c in candidates if counts[c.key] == rarest]
        chosen = candidates[self.rng.integers(len(candidates))]
        counts[chosen.key] += 1
        self.asked[form.name] += 1
        return chosen

    def letter(self, form: Form) -> int:
        block = self.letters[form.name]
        if not block:
            block.extend(int(k) for k in self.rng.permutation(len(LETTERS)))
        return block.pop()


def annotate(options: MovingShapesOptions, split: str) -> Iterator[tuple[Scene, list[dict[str, Any]]]]:
    """Scenes of a split with the records of their questions: clips first, then images."""
    rng = np.random.default_rng([options.seed, SPLITS.index(split)])
    scenes = options.scenes_of(split)
    balance = Balance(rng, scenes)
    numbers = range(scenes.min_shapes, scenes.max_shapes + 1)
    shares = np.array([0.5 if n == 1 else 1.0 for n in numbers])  # one shape alone allows no comparison
    clips, images = options.counts(split)
    for index in range(clips + images):
        is_image = index >= clips
        name = f"{split}_{index - clips:06d}.png" if is_image else f"{split}_{index:06d}.mp4"
        num_shapes = int(rng.choice(numbers, p=shares / shares.sum()))
        media = f"{'images' if is_image else 'videos'}/{name}"
        scene = random_scene(rng, scenes, media, options.size, is_image, num_shapes)
        wanted = options.questions_per_image if is_image else options.questions_per_clip
        yield scene, _ask(scene, balance, wanted, index)


def _ask(scene: Scene, balance: Balance, wanted: int, scene_index: int) -> list[dict[str, Any]]:
    """Records of up to `wanted` questions of different types."""
    records: list[dict[str, Any]] = []
    for forms in balance.by_need():
        for form in forms:
            if (
                form.domain is not None
                and form.answer_type == "mcq"
                and len(form.domain(balance.options)) < len(LETTERS)
            ):
                continue
            candidates = list(form.candidates(scene, balance.options, balance.rng))
            chosen = balance.choose(form, candidates) if candidates else None
            if chosen is not None:
                records.append(_record(scene, form, chosen, balance, scene_index))
                break
        if len(records) == wanted:
            break
    return records


def _record(scene: Scene, form: Form, candidate: Candidate, balance: Balance, scene_index: int) -> dict[str, Any]:
    """The flat record that is stored, with the thought closed by its conclusion."""
    options: list[str] = []
    answer, conclusion = candidate.answer, candidate.evidence
    if form.answer_type == "mcq":
        wrong = [c for c in candidate.choices if c != candidate.answer]
        options = [wrong[k] for k in balance.rng.permutation(len(wrong))[: len(LETTERS) - 1]]
        place = balance.letter(form)
        options.insert(place, candidate.answer)
        answer, conclusion = LETTERS[place], f"{candidate.evidence}, option {LETTERS[place]}"
    stem = scene.media.rsplit("/", 1)[1].replace(".", "-")
    return {
        "id": f"moving-shapes/{stem}/{form.name}",
        "scene": scene_index,
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
