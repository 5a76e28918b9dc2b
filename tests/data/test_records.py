"""The neutral record: what is written reads back equal; what breaks a rule is listed with its line."""

import json
import os
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jvlmm.data.check import data_check, grouped, histogram
from jvlmm.data.example import Example, Media
from jvlmm.data.records import read_examples, read_records, write_examples
from jvlmm.data.rejections import Rejected, Rejections
from jvlmm.data.stgr import read_stgr
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


QUESTION = {**ROW, "response": "x"}


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_a_byte_order_mark_loses_no_row(tmp_path, end):
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps({**ROW, "id": name}).encode() for name in "ab"]
    path.write_bytes(b"\xef\xbb\xbf" + end.join(lines) + end)
    records = read_records(path)
    assert [e.id for e in records.examples] == ["a", "b"] and records.rejected == ()


@pytest.mark.parametrize("indent", [None, 2])
def test_a_json_array_of_rows_is_read(tmp_path, indent):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{**ROW, "id": "a"}, [1], {**ROW, "id": "b"}], indent=indent))
    records = read_records(path)
    assert [e.id for e in records.examples] == ["a", "b"]
    (rejected,) = records.rejected
    assert rejected.reason == "row 2: a JSON object is expected, not list"


def test_an_array_that_ends_too_early_is_refused_and_lines_that_begin_with_a_list_are_read(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([ROW])[:-1])
    with pytest.raises(DataError, match=r"rows\.json: the JSON array cannot be read"):
        read_records(path)
    records = read_records(_file(tmp_path, [1, 2], ROW))
    assert [e.id for e in records.examples] == ["a"] and len(records.rejected) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"question": "on \ud83d top?"},
        {"id": "x\ud83d"},
        {"response": "\udc00"},
        {"options": ["\ud83d", "y"], "answer_type": "mcq", "answer": "A"},
        {"media": [{"type": "image", "path": "\ud83d.png"}]},
        {"media": [{"type": "video", "path": "x", "start": 10**400}]},
        {"media": [{"type": "video", "path": "x", "end": 10**400}]},
        {"answer": float("nan"), "answer_type": "number"},
        {"answer": [1, float("inf")], "answer_type": "span"},
        {"id": True},
        {"system": 3},
        {"earlier": [{**QUESTION, "system": "x"}]},
        {"answer_type": "mcq", "options": ["B. red", "A. blue"], "answer": "A"},
        {"answer_type": ["mcq"]},
    ],
)
def test_a_row_that_no_file_or_tokenizer_takes_is_listed_safely(tmp_path, change):
    records = read_records(_file(tmp_path, {**ROW, **change}, {**ROW, "id": "last"}))
    assert [e.id for e in records.examples] == ["last"]
    (rejected,) = records.rejected
    text = f"{rejected.id} {rejected.reason}"
    text.encode("utf-8")
    assert rejected.reason.startswith("line 1: ") and len(text) < 600 and "unexpected" not in text


def test_rows_are_told_apart_by_file_and_line(tmp_path):
    rejections = Rejections(tmp_path / "rejected.jsonl")
    for name in ("da", "db"):
        (tmp_path / name).mkdir()
        records = read_records(_file(tmp_path / name, b"{", ROW, ROW, ROW))
        assert [row.id for row in records.rejected] == ["rows.jsonl:1", "a", "a"]
        assert records.examples[0].origin == f"{tmp_path / name / 'rows.jsonl'}:2"
        for _ in range(2):  # as it comes by in every epoch
            for rejected in records.rejected:
                rejections.add(rejected)
    assert len(rejections) == 6 and len((tmp_path / "rejected.jsonl").read_text().splitlines()) == 6
    assert len(Rejections(tmp_path / "rejected.jsonl")) == 6, "read back"


def test_the_list_of_rejected_rows_is_json_whatever_their_ids_hold(tmp_path):
    path = tmp_path / "rejected.jsonl"
    Rejections(path).add(Rejected("x\ud83d\n", "no \udc00"))
    assert json.loads(path.read_text(encoding="utf-8")) == {"id": "x\ud83d\n", "reason": "no \udc00"}
    assert Rejections(path).reasons == {"x\ud83d\n": "no \udc00"}


def test_devices_pipes_and_utf_16_are_no_data_files(tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    for path in (tmp_path / "pipe.jsonl", "/dev/zero"):
        for read in (read_records, lambda path: read_stgr(path, tmp_path)):
            with pytest.raises(DataError, match="a device or a pipe is no data file"):
                read(path)
    (tmp_path / "wide.jsonl").write_text(json.dumps(ROW), encoding="utf-16")
    with pytest.raises(DataError, match="it is UTF-16 text.; save it as UTF-8"):
        read_records(tmp_path / "wide.jsonl")


def test_a_line_without_an_end_costs_bounded_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("jvlmm.data.records.LINE_BYTES", 200)
    records = read_records(_file(tmp_path, {**ROW, "question": "x" * 1000}, {**ROW, "id": "last"}))
    assert [e.id for e in records.examples] == ["last"] and records.rejected[0].id == "rows.jsonl:1"


def test_options_lose_the_letters_they_bring_and_system_texts_are_kept(tmp_path):
    row = {**ROW, "answer_type": "mcq", "answer": "A", "options": ["A. red", "B. blue"], "system": "Be brief."}
    (example,) = read_examples(_file(tmp_path, row))
    assert example.options == ("red", "blue") and example.system == "Be brief." and not example.meta
    write_examples(tmp_path / "again.jsonl", [example])
    assert read_examples(tmp_path / "again.jsonl") == (example,)


def _picture_row(path):
    return {**QUESTION, "media": [{"type": "image", "path": path}]}


def test_links_of_a_hub_cache_are_followed_within_the_data_set(tmp_path):
    hub = tmp_path / "datasets--u--d"
    for folder in ("blobs", "snapshots/abc/clips"):
        (hub / folder).mkdir(parents=True)
    (hub / "blobs/3f0a").write_bytes(b"picture")
    (hub / "snapshots/abc/clips/a.png").symlink_to("../../../blobs/3f0a")
    (tmp_path / "secret").touch()
    (hub / "snapshots/abc/clips/out.png").symlink_to(tmp_path / "secret")
    rows = [_picture_row("clips/a.png"), {**_picture_row("clips/out.png"), "id": "out"}]
    _file(hub / "blobs", *rows).rename(hub / "blobs/77aa")
    (hub / "snapshots/abc/train.jsonl").symlink_to("../../blobs/77aa")
    records = read_records(hub / "snapshots/abc/train.jsonl")
    assert [e.media[0].path for e in records.examples] == [str(hub / "blobs/3f0a")]
    assert "leaves the folder" in records.rejected[0].reason


@pytest.mark.parametrize(
    ("rows", "name", "file", "root"),
    [
        ("data", "videos/a.png", "ext/a.png", "."),  # a link, bounded by the folder that holds both ends
        ("data", "videos/a.png", "ext/a.png", "ext"),  # by where it leads
        ("annotations", "../ext/a.png", "ext/a.png", "."),  # a sibling folder
        ("annotations", "a.png", "ext/a.png", "ext"),  # named from the root
        ("annotations", "ext/a.png", "ext/a.png", "."),
    ],
)
def test_media_lie_under_the_root_that_is_named(tmp_path, rows, name, file, root):
    for folder in ("ext", "annotations", "data"):
        (tmp_path / folder).mkdir()
    (tmp_path / file).touch()
    (tmp_path / "data/videos").symlink_to("../ext")
    path = _file(tmp_path / rows, _picture_row(name))
    for rejected in read_records(path).rejected:
        assert "or name the folder that holds both: --root of a command, root= of a source" in rejected.reason
    (example,) = read_examples(path, root=tmp_path / root)
    assert example.media[0].path == str(tmp_path / file)
    write_examples(tmp_path / "again.jsonl", [example], root=tmp_path / root)
    assert read_examples(tmp_path / "again.jsonl", root=tmp_path / root) == (example,)


@pytest.mark.parametrize("name", ["../x.png", "/etc/passwd", "link/../../x.png", "link/x.png", "up/passwd", "a\0b"])
def test_nothing_outside_the_root_is_named(tmp_path, name):
    (tmp_path / "root/deep").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/x.png").touch()
    (tmp_path / "x.png").touch()
    (tmp_path / "root/link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root/up").symlink_to("/etc")
    for root in (tmp_path / "root", None):
        records = read_records(_file(tmp_path / "root", _picture_row(name)), root)
        assert not records.examples and "leaves the folder" in records.rejected[0].reason


def test_a_root_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(DataError, match="root .*nowhere: no such folder"):
        read_records(_file(tmp_path, ROW), tmp_path / "nowhere")


def test_check_groups_reasons_and_names_the_view_for_answers_without_a_thought(tmp_path, drawing):
    rows = [{**ROW, "id": f"gone {k}", "media": [{"type": "video", "path": f"broken-{k}.mp4"}]} for k in range(7)]
    result = data_check(_file(tmp_path, *rows, {"id": "b"}, ROW), drawing.processor())
    assert [group["count"] for group in result["reasons"]] == [7, 1]
    assert result["reasons"][0]["ids"] == [f"gone {k}" for k in range(5)]
    assert (result["usable"], result["without_response"]) == (1, 1)
    with pytest.raises(DataError, match="view=answer"):
        drawing.processor().training(Example("a", "What?", "x", "text"))


def test_a_row_names_the_coordinates_of_its_boxes(tmp_path):
    path, row = tmp_path / "rows.jsonl", {"question": "Where?", "answer": [0, 0, 1, 1], "answer_type": "boxes"}
    media = [{"type": "image", "path": "a.png"}, {"type": "image", "path": "b.png"}]
    rows = [
        {**row, "id": "a", "coordinates": "shares", "media": media, "box_medium": 1},
        {**row, "id": "b", "coordinates": "inches"},
        {**row, "id": "c", "media": media, "box_medium": 2},
        {**row, "id": "d"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    records = read_records(path)
    assert [(e.coordinates, e.box_medium) for e in records.examples] == [("shares", 1), ("", None)]
    reasons = [rejected.reason for rejected in records.rejected]
    assert "coordinates is 'inches'; allowed: file, shown, per-mille, shares" in reasons[0]
    assert "box_medium is 2; give the number of one of the 2 media" in reasons[1]


def test_reasons_are_of_one_kind_whatever_digits_the_ids_are():
    problems = [Rejected(str(k), f"{k}: 74 tokens (9 visual) exceed max_length=20") for k in (1, 2, 4, 74)]
    assert [(group["count"], group["ids"]) for group in grouped(problems)] == [(4, ["1", "2", "4", "74"])]
