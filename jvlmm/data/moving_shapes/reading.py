"""Random access to a built dataset, as examples: questions with reasoned or direct answers, and captions."""

import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from string import ascii_uppercase
from typing import Any, SupportsIndex

import numpy as np

from jvlmm.data.example import AnswerType, Example, Media
from jvlmm.data.moving_shapes.captions import CAPTIONS, STILL_CAPTIONS, caption
from jvlmm.data.moving_shapes.dataset import DESCRIPTION, read_description
from jvlmm.data.moving_shapes.options import is_image
from jvlmm.data.moving_shapes.questions import FORMS
from jvlmm.data.moving_shapes.scene import COLOURS, KINDS, Scene, scene_from_dict
from jvlmm.errors import DataError

BENCHMARK = "moving-shapes"
_RECITED = 8  # options in a lesson of letters


@dataclass(frozen=True)
class Questions(Sequence):
    """The questions of a split, read record by record."""

    root: Path
    split: str
    scenes: Sequence
    questions: Sequence
    rows: tuple[int, ...]
    scene_of: tuple[int, ...]  # the scene of every row of the split

    @property
    def fingerprint(self) -> list[dict[str, Any]]:
        """As `data_fingerprint`: of the data set's description, from which everything in it follows."""
        return _fingerprint(self.root, len(self))

    @property
    def media_keys(self) -> list[int]:
        """For every question a number that is the same for questions about the same clip."""
        return [self.scene_of[row] for row in self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: SupportsIndex | slice) -> Example:
        if isinstance(index, slice):
            return replace(self, rows=self.rows[index])
        record = {name: _plain(value) for name, value in self.questions[self.rows[index]].items()}
        scene = json.loads(_plain(self.scenes[record["scene"]]["scene"]))
        return Example(
            id=record["id"],
            question=record["question"],
            answer=record["answer"],
            answer_type=record["answer_type"],
            media=(_media(self.root, scene),),
            options=tuple(record["options"]),
            question_type=record["question_type"],
            response=record["response"],
            benchmark=BENCHMARK,
            split=self.split,
            origin=f"{self.root}/{self.split}:{record['id']}",
            meta={
                "form": record["form"],
                "answer_text": record["answer_text"],
                "evidence": _evidence(json.loads(record["cited"]), scene),
                "scene": scene,
            },
        )


@dataclass(frozen=True)
class Captions(Sequence):
    """Descriptions of the clips and images of a split."""

    root: Path
    split: str
    scenes: Sequence
    rows: tuple[tuple[int, str, int], ...]  # row of the scene, kind of caption, which draw of it

    @property
    def fingerprint(self) -> list[dict[str, Any]]:
        """As `data_fingerprint`: of the data set's description, from which everything in it follows."""
        return _fingerprint(self.root, len(self))

    @property
    def media_keys(self) -> list[int]:
        """For every description a number that is the same for descriptions of the same clip."""
        return [row for row, _, _ in self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: SupportsIndex | slice) -> Example:
        if isinstance(index, slice):
            return replace(self, rows=self.rows[index])
        row, name, draw = self.rows[index]
        record = json.loads(_plain(self.scenes[row]["scene"]))
        question, text = caption(name, scene_from_dict(record), seed=(row, draw))
        stem = record["media"].rsplit("/", 1)[1].replace(".", "-")
        return Example(
            id=f"{BENCHMARK}/{stem}/{name}-{draw}",
            question=question,
            answer=text,
            answer_type="text",
            media=(_media(self.root, record),),
            question_type=name,
            response=text,
            benchmark=BENCHMARK,
            split=self.split,
            origin=f"{self.root}/{self.split}:{stem}/{name}-{draw}",
            meta={"scene": record},
        )


def load(
    root: str | Path,
    split: str,
    question_types: Sequence[str] | None = None,
    answer_types: Sequence[AnswerType] | None = None,
    limit: int | None = None,
) -> Questions:
    """Questions of a split in a fixed order in which types alternate: random access, absolute media paths.

    `limit` keeps the first so many; every prefix is balanced. Raises DataError for an unknown split or
    question type and where the folder holds no complete dataset.
    """
    _check_names("question type", question_types, FORMS)
    asked = _of_split(root, split, "questions")
    wanted = {
        form.name
        for form in chain.from_iterable(FORMS.values())
        if (question_types is None or form.question_type in question_types)
        and (answer_types is None or form.answer_type in answer_types)
    }
    rows = [k for k, (form, _) in enumerate(asked) if form in wanted]
    scenes, questions = _open(root, split)
    scene_of = tuple(scene for _, scene in asked)
    return Questions(Path(root).absolute(), split, scenes, questions, tuple(rows[:limit]), scene_of)


def caption_examples(
    root: str | Path, split: str, kinds: Sequence[str] | None = None, draws: int = 1, limit: int | None = None
) -> Captions:
    """Dense supervision: descriptions of every scene of a split, as plain text without a thought.

    Each kind of description comes `draws` times a scene, with other words, objects and times. `kinds` chooses
    some of CAPTIONS. Raises DataError as `load` does.
    """
    _check_names("caption", kinds, CAPTIONS)
    counts = _of_split(root, split, "counts")
    clips, images = counts["clips"], counts["images"]
    scenes, _ = _open(root, split)
    rows = (
        (row, name, draw)
        for row in range(clips + images)
        for draw in range(draws)
        for name in (STILL_CAPTIONS if is_image(row, clips, images) else CAPTIONS)
        if kinds is None or name in kinds
    )
    return Captions(Path(root).absolute(), split, scenes, tuple(islice(rows, limit)))


def scenes(root: str | Path, split: str) -> Iterator[Scene]:
    """The ground truth of every clip and image of a split."""
    records, _ = _open(root, split)
    for k in range(len(records)):
        yield scene_from_dict(json.loads(_plain(records[k]["scene"])))


def direct(example: Example) -> Example:
    """The same question with nothing but its answer as the response."""
    return replace(example, response=example.answer)


def open_ended(example: Example) -> Example:
    """The same question without options, with the text of the right one, or else the answer, as the response."""
    if not example.options:
        return direct(example)
    answer = _right_option(example)
    return replace(example, options=(), answer=answer, answer_type="text", response=answer)


def explained(example: Example) -> Example:
    """The same question with the thought alone, as plain text, as the response; it ends in the answer."""
    thought = (example.response or "").removeprefix("<think>").split("</think>")[0]
    return replace(example, response=thought or None)


def lettered(example: Example) -> Example:
    """The same question without its media, with its options at random and their letters as the response.

    Only the letters are learnt: to find that of an option. Some options come again.
    """
    if not example.options:
        return replace(example, media=(), response=example.answer, learn=())
    return _lesson(example, example.options, np.random.default_rng(zlib.crc32(example.id.encode())))


def lettered_pairs(example: Example) -> Example:
    """As `lettered`, with names of objects as options: two colours of two kinds, so that one word alone tells none."""
    rng = np.random.default_rng(zlib.crc32(example.id.encode()))
    colours, kinds = rng.choice(list(COLOURS), 2, replace=False), rng.choice(KINDS, 2, replace=False)
    names = [f"{colour} {kind}" for colour in colours for kind in kinds]
    options = tuple(names[k] for k in rng.permutation(len(names)))
    return _lesson(replace(example, question="Which of these is it?", options=options), options, rng)


def _lesson(example: Example, options: Sequence[str], rng: np.random.Generator) -> Example:
    letters = tuple(f" {chr(ord('A') + k)}" for k in range(len(options)))
    recited = ", ".join(f"{options[k]}{letters[k]}" for k in rng.integers(len(options), size=_RECITED))
    return replace(example, media=(), response=recited, learn=letters)


def _right_option(example: Example) -> str:
    letters = ascii_uppercase[: len(example.options)]
    if len(example.answer) != 1 or example.answer not in letters:
        raise DataError(f"{example.id}: the answer {example.answer!r} is not the letter of an option; give one")
    return example.options[letters.index(example.answer)]


def _check_names(what: str, names: Sequence[str] | None, known: Iterable[str]) -> None:
    unknown = [name for name in names or () if name not in known]
    if unknown:
        raise DataError(f"{what} {unknown[0]!r} does not exist; use some of {', '.join(known)}")


def _of_split(root: str | Path, split: str, field: str) -> Any:
    """A split's entry in a field of the description."""
    splits = read_description(Path(root))[field]
    if split not in splits:
        raise DataError(f"{root}: there is no split {split!r}; use one of {', '.join(splits)}")
    return splits[split]


def _open(root: str | Path, split: str) -> tuple[Sequence, Sequence]:
    from jvlmm.data.moving_shapes import builder

    try:
        scenes, questions = builder.open_split(Path(root) / "records", split)
        for records in (scenes, questions):
            if len(records):
                records[len(records) - 1]
        return scenes, questions
    except (OSError, ValueError, AttributeError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{root}: its records cannot be read ({reason}); delete the folder and build again") from error


def _fingerprint(root: Path, rows: int) -> list[dict[str, Any]]:
    content = (root / DESCRIPTION).read_bytes()
    return [{"file": str(root / DESCRIPTION), "rows": rows, "sha256": hashlib.sha256(content).hexdigest()}]


def _plain(value: Any) -> Any:
    """A TFDS value as Python's own type."""
    if isinstance(value, bytes):
        return value.decode()
    return [_plain(v) for v in value] if hasattr(value, "__len__") and not isinstance(value, str) else int(value)


def _media(root: Path, scene: dict[str, Any]) -> Media:
    return Media("image" if scene["steps"] == 1 else "video", str(root / scene["media"]))


def _evidence(cited: list[dict[str, Any]], scene: dict[str, Any]) -> list[dict[str, Any]]:
    """What the reference thought cites, as `rewards.claims.key_frames` reads it."""
    boxes = {track["object"]: track["boxes"] for track in scene["tracks"]}
    frames: dict[float, dict[str, list]] = {}
    for c in cited:
        frames.setdefault(c["time"], {}).setdefault(c["object"], []).append(boxes[c["object"]][c["step"]])
    return [{"time": time, "objects": frames[time]} for time in sorted(frames)]
