"""What a source offers a stage: views, conversations, repetition."""

import pytest

from jvlmm.data.example import Example, Media
from jvlmm.data.hindsight import HEADER
from jvlmm.data.records import read_examples, write_examples
from jvlmm.data.rejections import Rejections
from jvlmm.errors import ConfigError
from jvlmm.recipes.recipe import Run
from jvlmm.recipes.sources import Source, open_source


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
