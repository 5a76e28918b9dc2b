"""A run goes on with the data it began with: other rows are refused by the name of their file."""

import json
import re
import shutil

import pytest

from jvlmm.data.batch import BatchOptions
from jvlmm.data.concatenation import Concatenation
from jvlmm.data.conversations import Conversations
from jvlmm.data.fingerprint import check_same_data, data_fingerprint
from jvlmm.data.loader import make_loader
from jvlmm.data.pass_rates import Ordered
from jvlmm.data.prompt_stream import PromptStream
from jvlmm.data.records import read_examples
from jvlmm.data.rejections import Rejections
from jvlmm.errors import DataError

OPTIONS = BatchOptions(batch_size=2, length_buckets=(128,))


def write(path, question="Which?", number=4, **fields):
    media = [{"type": "image", "path": "a.png"}]
    rows = [
        {"id": str(k), "question": question, "answer": "x", "answer_type": "text", "media": media, **fields}
        for k in range(number)
    ]
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps({**row, "response": "x"}) + "\n" for row in rows))
    return read_examples(path)


@pytest.mark.parametrize(
    "change",
    [
        {"question": "Another?"},
        {"meta": {"window": [1, 2]}},
        {"system": "Be brief."},
        {"media": [{"type": "image", "path": "b.png"}]},
        {"media": [{"type": "image", "path": "a.png", "start": 1.0}]},
        {"earlier": [{"id": "z", "question": "?", "answer": "y", "answer_type": "text", "response": "y"}]},
    ],
)
def test_any_change_of_a_row_changes_it(tmp_path, change):
    assert data_fingerprint(write(tmp_path / "a/r.jsonl")) != data_fingerprint(write(tmp_path / "a/r.jsonl", **change))


def test_it_names_every_file_and_does_not_depend_on_where_they_lie(tmp_path):
    first, second = write(tmp_path / "a/one.jsonl"), write(tmp_path / "a/two.jsonl", number=3)
    found = data_fingerprint(Concatenation([first, second]))
    assert [(entry["file"], entry["rows"]) for entry in found] == [
        (str(tmp_path / "a/one.jsonl"), 4),
        (str(tmp_path / "a/two.jsonl"), 3),
    ]
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    moved = data_fingerprint([*read_examples(tmp_path / "b/one.jsonl"), *read_examples(tmp_path / "b/two.jsonl")])
    check_same_data({"examples": 7, "seed": 0, "files": found}, {"examples": 7, "seed": 0, "files": moved})
    assert data_fingerprint(Conversations(first, 2)) == data_fingerprint(Ordered(first, (1, 0))) == found[:1]


def loader_of(examples, drawing):
    return make_loader(examples, drawing.processor(), OPTIONS, 0)


def stream_of(examples, drawing):
    return PromptStream(examples, drawing.processor(), OPTIONS, 2, 0, Rejections(None), lambda example: None)


@pytest.mark.parametrize("opened", [loader_of, stream_of])
def test_a_changed_file_is_refused_by_name_on_resuming(tmp_path, drawing, opened):
    path = tmp_path / "rows.jsonl"
    examples = write(path, media=[])
    with opened(examples, drawing) as before:
        next(before)
        state = json.loads(json.dumps(before.get_state()))
    with opened(write(path, media=[]), drawing) as again:
        again.set_state(state)
    named = r"rows\.jsonl changed since"
    with opened(write(path, "Another?", media=[]), drawing) as other, pytest.raises(DataError) as caught:
        other.set_state(state)
    assert re.search(f"other data: .*{named} .*start a new run directory", str(caught.value))
    with opened(write(path, number=5, media=[]), drawing) as longer, pytest.raises(DataError) as caught:
        longer.set_state(state)
    assert re.search(f"examples=4.*examples=5.*{named} .4 usable rows then, 5 now", str(caught.value))
    del state["data"]["files"]  # as earlier versions saved it
    with opened(examples, drawing) as old:
        old.set_state(state)
