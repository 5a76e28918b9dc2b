"""What a source offers a stage: views, conversations, repetition."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from jvlmm.data.example import Example, Media
from jvlmm.data.hindsight import HEADER
from jvlmm.data.processor import ProcessorOptions
from jvlmm.data.records import read_examples, write_examples
from jvlmm.data.rejections import Rejections
from jvlmm.errors import ConfigError
from jvlmm.evaluation.evaluate import evaluate
from jvlmm.recipes.recipe import Run
from jvlmm.recipes.sources import Source, open_source, open_sources
from jvlmm.rollout.generator import Response
from jvlmm.rollout.sampling import SamplingOptions


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "rows.jsonl"
    (tmp_path / "a.mp4").touch()
    (tmp_path / "b.mp4").touch()
    rows = [
        Example(str(k), f"Question {k}?", str(k), "number", (Media("video", str(tmp_path / name)),), response=f"r{k}")
        for k, name in enumerate(("a.mp4", "b.mp4", "a.mp4", "a.mp4"))
    ]
    write_examples(path, rows)
    return path


def _open(path, **options):
    rejections = Rejections(path.parent / "rejected.jsonl")
    return list(open_source(Run(path.parent, 0), Source(str(path), **options), rejections))


def test_views_and_repetition(path):
    assert [e.response for e in _open(path)] == ["r0", "r1", "r2", "r3"]
    assert [e.response for e in _open(path, view="answer", repeat=2)] == ["0", "1", "2", "3"] * 2


def test_hinted_questions_bring_what_a_teacher_would_be_told(path):
    (example, *_) = _open(path, view="hinted")
    assert example.response == "r0" and example.hint == f" {HEADER}\nVerified answer: 0"


def test_boxes_of_rows_that_do_not_say_stand_in_the_coordinates_of_their_source(path):
    rows = [*read_examples(path)]
    write_examples(path, [replace(rows[0], coordinates="per-mille"), *rows[1:]])
    assert {e.coordinates for e in _open(path)} == {"per-mille", ""}
    found = _open(path, coordinates="shares", view="answer")
    assert [e.coordinates for e in found] == ["per-mille", "shares", "shares", "shares"]
    assert found[1].response == "1"


def test_turns_join_questions_about_the_same_media(path):
    conversations = _open(path, view="answer", turns=2)
    turns = [[*c.earlier, c] for c in conversations]
    assert sorted(len(t) for t in turns) == [1, 1, 2]
    assert sorted(e.response for t in turns for e in t) == ["0", "1", "2", "3"]


def test_the_limit_counts_what_the_types_leave(path):
    rows = [Example("t", "What is it?", "a cat", "text", response="a cat"), *read_examples(path)]
    write_examples(path, rows)
    assert [e.id for e in _open(path, answer_types=("number",), limit=2)] == ["0", "1"]


@pytest.mark.parametrize("name", ["turns", "repeat"])
def test_less_than_one_is_refused(path, name):
    with pytest.raises(ConfigError, match=f"{name}=0 must be at least 1"):
        _open(path, **{name: 0})


def test_captions_have_no_type_of_answer(tmp_path):
    with pytest.raises(ConfigError, match="captions are no answers; leave answer_types away"):
        _open(tmp_path, view="captions", answer_types=("mcq",))


ROW = {"question": "How many?", "answer": "3", "answer_type": "number"}


def _lines(path, *rows):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return Source(str(path))


class Scripted:
    """Answers everything with 3, or not at all."""

    options, params = SamplingOptions(), {}
    processor = SimpleNamespace(options=ProcessorOptions())

    def stream(self, examples):
        for row, example in enumerate(examples):
            yield row, Response(example.id, "3", (1,), True)


def test_every_row_of_every_file_is_in_the_denominator(tmp_path):
    """Broken rows, repeated ids and equal file names in two folders; a missing file is the model's side to count."""
    a = _lines(tmp_path / "da/test.jsonl", "{broken", {**ROW, "id": "1"}, {**ROW, "id": "1"}, {**ROW, "id": "1"})
    b = _lines(tmp_path / "db/test.jsonl", "{broken", {**ROW, "id": "1"}, {**ROW, "id": "2", "answer_type": "Z"})
    unusable = Rejections(None, repeated=True)
    examples = open_sources(Run(tmp_path, 0), (a, b, replace(b, repeat=2)), unusable)
    figures = evaluate(Scripted(), examples, tmp_path / "p.jsonl", unusable=unusable.rows)
    assert figures["counts"]["overall"] == 4 + 3 + 6 and figures["accuracy"]["overall"] == pytest.approx(4 / 13)
    assert len(figures["failed"]) == 9
    assert figures["failed"][0]["error"].startswith(f"{tmp_path / 'da/test.jsonl'}: line 1: ")
    lines = (tmp_path / "p.jsonl").read_text().splitlines()
    assert len([json.loads(line, parse_constant=pytest.fail) for line in lines]) == 13


def test_the_limit_counts_rows_that_cannot_be_used(tmp_path):
    source = _lines(tmp_path / "t.jsonl", "{broken", {**ROW, "id": "1"}, {**ROW, "id": "2"}, {"id": "3"})
    unusable = Rejections(None, repeated=True)
    examples = open_sources(Run(tmp_path, 0), (replace(source, limit=2),), unusable)
    assert len(examples) == len(unusable) == 1


def test_a_row_that_its_view_cannot_change_is_listed(tmp_path):
    row = {**ROW, "id": "1", "answer_type": "mcq", "options": ["a", "b"], "response": "b", "answer": ""}
    source = _lines(tmp_path / "t.jsonl", row, {**row, "id": "2", "answer": "B"})
    rejections = Rejections(None)
    (example,) = open_source(Run(tmp_path, 0), replace(source, view="open"), rejections)
    assert example.response == "b" and "is not the letter of an option" in rejections.reasons["1"]


def test_a_root_holds_the_media_of_a_jsonl_file_only(tmp_path):
    (tmp_path / "videos").mkdir()
    source = _lines(
        tmp_path / "rows/t.jsonl", {**ROW, "id": "1", "media": [{"type": "video", "path": "../videos/a.mp4"}]}
    )
    rejections = Rejections(None)
    assert not list(open_source(Run(tmp_path, 0), source, rejections)) and "root=" in rejections.reasons["1"]
    (example,) = open_source(Run(tmp_path, 0), replace(source, root=str(tmp_path)), rejections)
    assert example.media[0].path == str(tmp_path / "videos/a.mp4")
    with pytest.raises(ConfigError, match="root=.* is for a JSONL file only"):
        open_source(Run(tmp_path, 0), Source(str(tmp_path), root=str(tmp_path)), rejections)
