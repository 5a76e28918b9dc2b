"""Lists of JSON lines whose end a kill tore, in the middle of a character too."""

import json

import pytest

from jvlmm.files import keep_json_lines, read_json_lines, write_atomically

WHOLE = '{"step": 1, "text": "é"}\n{"step": 2, "text": "b"}\n'


@pytest.mark.parametrize("torn", [b"", b"{", b'{"id"', '{"step": 3, "text": "é'.encode()[:-1], b"\xff\xfe", b"null\n"])
def test_a_torn_line_is_left_out(tmp_path, torn):
    path = tmp_path / "list.jsonl"
    path.write_bytes(WHOLE.encode() + torn)
    assert [record["step"] for record in read_json_lines(path)] == [1, 2]
    keep_json_lines(path, lambda record: record["step"] < 2)
    assert path.read_text("utf-8") == WHOLE.splitlines(keepends=True)[0]


def test_no_file_is_an_empty_list(tmp_path):
    assert read_json_lines(tmp_path / "none") == []
    keep_json_lines(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_file_is_written_whole(tmp_path):
    write_atomically(tmp_path / "new/file.json", json.dumps({"a": "é"}))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["file.json"]
