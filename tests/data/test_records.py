"""The neutral record: what is written reads back equal; what breaks a rule is listed with its line."""

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jvlmm.data.check import data_check, histogram
from jvlmm.data.example import Example, Media
from jvlmm.data.records import read_examples, read_records, write_examples
from jvlmm.errors import DataError

ROW = {"id": "a", "question": "What?", "answer": "x", "answer_type": "text"}


def _file(tmp_path, *rows):
    path = tmp_path / "rows.jsonl"
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
_name = st.text("abc-_ é", min_size=1, max_size=8).filter(str.strip)
_seconds = st.none() | st.tuples(st.floats(0, 10), st.floats(11, 20))


@st.composite
def _examples(draw):
    kind = draw(st.sampled_from(["mcq", "yesno", "number", "text", "span", "boxes"]))
    options = draw(st.lists(_text, min_size=2, max_size=5)) if kind == "mcq" else []
    response = draw(st.none() | _text.filter(bool))
    answer = draw(st.sampled_from("ABCDE"[: len(options)])) if kind == "mcq" else draw(_text)
    media = [
        (draw(st.sampled_from(["image", "video"])), draw(_name), draw(_seconds) or (None, None))
        for _ in range(draw(st.integers(0, 2)))
    ]
    meta = draw(st.dictionaries(_text, st.none() | st.integers() | _text | st.lists(st.integers()), max_size=3))
    fields = {name: draw(_text) for name in ("benchmark", "split", "hint")}
    return kind, options, response, answer, media, meta, fields, draw(_text.filter(str.strip)), draw(_name)


@settings(max_examples=60, deadline=None)
@given(st.lists(_examples(), max_size=4, unique_by=lambda e: e[-1]))
def test_written_examples_read_back_equal(tmp_path_factory, drawn):
    folder = tmp_path_factory.mktemp("records").resolve()
    examples = [
        Example(
            id=name,
            question=question,
            answer=answer,
            answer_type=kind,
            media=tuple(Media(t, str(folder / "clips" / n), *times) for t, n, times in media),
            options=tuple(options),
            question_type="order",
            response=response,
            learn=tuple(options),
            meta=meta,
            **fields,
        )
        for kind, options, response, answer, media, meta, fields, question, name in drawn
    ]
    path = folder / "rows.jsonl"
    assert write_examples(path, examples) == len(examples)
    records = read_records(path)
    assert records.rejected == ()
    assert records.examples == tuple(examples)
    assert str(folder) not in path.read_text()


def test_unknown_columns_are_kept_and_json_answers_read_as_text(tmp_path):
    rows = [
        {**ROW, "source": "web", "meta": {"n": 1}, "options": None},
        {**ROW, "id": 7, "answer": [1.5, 3], "answer_type": "span"},
        {**ROW, "id": "n", "answer": 4, "answer_type": "number"},
    ]
    a, b, c = read_examples(_file(tmp_path, *rows))
    assert a.meta == {"source": "web", "n": 1} and a.options == ()
    assert (b.id, b.answer) == ("7", "[1.5, 3]")
    assert c.answer == "4"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (b'{"id": "a", "question"', "Expecting|Unterminated|delimiter"),
        (b"\xff\xfe{}", "utf-8"),
        (b"[" * 100_000, ""),
        (b"[1, 2]", "a JSON object is expected, not list"),
        ({"id": None}, "id is missing"),
        ({"id": " "}, "id is empty"),
        ({"id": 1.5}, "id must be a text"),
        ({"question": ""}, "question is empty"),
        ({"question": 3}, "question must be a text, not int"),
        ({"answer": None}, "answer is missing"),
        ({"answer": True}, "answer must be"),
        ({"answer_type": "essay"}, "'essay'; allowed: mcq, yesno"),
        ({"answer_type": "mcq"}, "at least two options"),
        (
            {"answer_type": "mcq", "options": ["x", "y"], "answer": "C"},
            "'C' must be the letter of an option",
        ),
        ({"answer_type": "mcq", "options": ["x", "y"], "answer": "AB"}, "'AB' must be the letter"),
        ({"options": "x"}, "options must be a list"),
        ({"options": [1, 2]}, "options must be a list of texts"),
        ({"options": list("abcdefghijklmnopqrstuvwxyz1")}, "options must be at most 26 texts"),
        ({"learn": " A"}, "learn must be a list"),
        ({"meta": 3}, "meta must be an object"),
        ({"media": {"path": "x"}}, "media must be a list"),
        ({"media": [{"type": "audio", "path": "x"}]}, "image or video"),
        ({"media": [{"type": "video"}]}, "path is missing"),
        ({"media": [{"type": "video", "path": "../x.mp4"}]}, "leaves the folder"),
        ({"media": [{"type": "video", "path": "clips/../../x.mp4"}]}, "leaves the folder"),
        ({"media": [{"type": "video", "path": "/etc/passwd"}]}, "leaves the folder"),
        ({"media": [{"type": "video", "path": "out/x.mp4"}]}, "leaves the folder"),
        ({"media": [{"type": "video", "path": "x\0y"}]}, "leaves the folder"),
        ({"media": [{"type": "video", "path": "x", "start": -1}]}, "start of media"),
        ({"media": [{"type": "video", "path": "x", "start": float("nan")}]}, "start of media"),
        ({"media": [{"type": "video", "path": "x", "end": "5"}]}, "end of media"),
        ({"media": [{"type": "video", "path": "x", "start": 5, "end": 5}]}, "not before its end"),
        ({"id": "first"}, "ids must be unique"),
    ],
)
def test_bad_rows_are_listed_and_the_others_kept(tmp_path, change, reason):
    (tmp_path / "out").symlink_to("/")
    bad = change if isinstance(change, bytes) else {**ROW, **change}
    path = _file(tmp_path, {**ROW, "id": "first"}, b"", bad, {**ROW, "id": "last"})
    records = read_records(path)
    assert [e.id for e in records.examples] == ["first", "last"]
    (rejected,) = records.rejected
    assert rejected.reason.startswith("line 3: ")
    assert re.search(reason, rejected.reason), rejected.reason


def test_reading_lists_bad_rows_or_refuses_them(tmp_path):
    path = _file(tmp_path, ROW, {"id": "b"}, {**ROW, "id": "c"})
    with pytest.raises(DataError, match="rows.jsonl: line 2: .*jvlmm data check"):
        read_examples(path)
    for _ in range(2):
        assert [e.id for e in read_examples(path, tmp_path / "rejected.jsonl")] == ["a", "c"]
    (line,) = (tmp_path / "rejected.jsonl").read_text().splitlines()
    assert json.loads(line)["id"] == "b" and json.loads(line)["reason"].startswith("line 2: ")


def test_media_may_lie_under_another_root(tmp_path):
    (tmp_path / "media").mkdir()
    (tmp_path / "rows").mkdir()
    path = _file(tmp_path / "rows", {**ROW, "media": [{"type": "image", "path": "a.png"}]})
    (example,) = read_examples(path, root=tmp_path / "media")
    assert example.media[0].path == str((tmp_path / "media/a.png").resolve())


def test_missing_file_gives_one_line(tmp_path):
    with pytest.raises(DataError, match="nowhere.jsonl: cannot be read"):
        read_examples(tmp_path / "nowhere.jsonl")
    with pytest.raises(DataError, match="cannot be read"):
        read_examples(tmp_path)


def test_failed_writing_leaves_the_earlier_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    write_examples(path, [Example("a", "What?", "x", "text")])
    before = path.read_bytes()
    outside = Example("b", "What?", "x", "text", media=(Media("video", "/elsewhere/x.mp4"),))
    with pytest.raises(DataError, match="b: /elsewhere/x.mp4 lies outside"):
        write_examples(path, [Example("a", "Else?", "x", "text"), outside])
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_folder_that_cannot_be_written_gives_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="rows.jsonl: cannot be written"):
        write_examples(tmp_path / "file" / "rows.jsonl", [Example("a", "What?", "x", "text")])


def test_check_counts_what_a_run_could_use(tmp_path, drawing):
    rows = [
        {**ROW, "id": "text"},
        {**ROW, "id": "clip", "media": [{"type": "video", "path": "4x56x56.mp4"}], "response": "x"},
        {**ROW, "id": "gone", "media": [{"type": "video", "path": "broken-1.mp4"}]},
        {**ROW, "id": "tags", "question": "<video> what?"},
        b"{",
    ]
    result = data_check(_file(tmp_path, *rows), drawing.processor())
    assert (result["examples"], result["usable"]) == (5, 2)
    assert [p["id"] for p in result["problems"]] == ["rows.jsonl:5", "gone", "tags"]
    assert result["visual_tokens"] == {"0": 1, "8": 1}
    assert sum(result["tokens"].values()) == 2
    json.dumps(result)


def test_check_opens_real_media_without_a_model(tmp_path):
    from PIL import Image

    Image.new("RGB", (280, 280)).save(tmp_path / "a.png")
    (tmp_path / "b.mp4").write_bytes(b"no video")
    rows = [{**ROW, "id": n, "media": [{"type": t, "path": n}]} for n, t in (("a.png", "image"), ("b.mp4", "video"))]
    result = data_check(_file(tmp_path, *rows))
    assert (result["examples"], result["usable"], result["visual_tokens"]) == (2, 1, {"128": 1})
    assert result["problems"][0]["id"] == "b.mp4" and "b.mp4" in result["problems"][0]["reason"]


def test_histogram_bounds():
    assert histogram([0, 1, 2, 3, 4, 5, 64, 65]) == {"0": 1, "1": 1, "2": 1, "4": 2, "8": 1, "64": 1, "128": 1}
    assert histogram([]) == {}


def test_conversations_read_back_equal(tmp_path):
    media = (Media("video", str(tmp_path.resolve() / "a.mp4")),)
    first = Example("a", "What?", "x", "text", media, response="x")
    conversation = Example("b", "When?", "2", "number", media, response="2", earlier=(first,))
    path = tmp_path / "rows.jsonl"
    write_examples(path, [conversation])
    assert read_examples(path) == (conversation,)


@pytest.mark.parametrize("turn", [ROW, {**ROW, "response": "x", "earlier": [{**ROW, "response": "x"}]}])
def test_an_earlier_turn_that_cannot_be_learnt_is_rejected(tmp_path, turn):
    records = read_records(_file(tmp_path, {**ROW, "response": "x", "earlier": [turn]}))
    (rejected,) = records.rejected
    assert rejected.reason == "line 1: each of earlier needs a response, and has no earlier of its own"
