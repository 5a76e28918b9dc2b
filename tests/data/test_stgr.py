"""Rows of the STGR files: all six tasks, the evidence in pixels, and what cannot be used."""

import json

import pytest

from jvlmm.cli.main import main
from jvlmm.data.records import read_examples
from jvlmm.data.stgr import read_stgr
from jvlmm.errors import DataError
from jvlmm.rewards.claims import key_frames
from jvlmm.rewards.completion import Completion
from jvlmm.rewards.gold import gold_boxes, gold_span
from jvlmm.rewards.rewarder import make_rewarder
from jvlmm.rewards.terms import RewardOptions

ROWS = [
    {
        "id": "choice",
        "task": "General video QA MCQ",
        "source": "videor1_mcq",
        "video_path": "a/1.mp4",
        "question": "What is it?\nOptions:\nA. a dog\nB. a cat",
        "answer": "B",
    },
    {
        "id": 7,
        "task": "General video QA Free-form",
        "source": "videor1_free_from",
        "video_path": "2.mp4",
        "question": "What is it?",
        "answer": "a dog",
        "reasoning_process": "It barks.",
    },
    {
        "id": "when",
        "task": "temporal QA",
        "source": "timerft",
        "video_path": "3.mp4",
        "question": "When does it bark?",
        "answer": "[1.5, 4]",
    },
    {
        "id": "which and when",
        "task": "temporal QA (MCQ)",
        "source": "TVG_qvhighlight",
        "video_path": "videomind_data/4.mp4",
        "question": "What barks?\n(A) a dog\n(B) a cat",
        "answer": "A\n[2.0, 3.5]",
    },
    {
        "id": "where and when",
        "task": "temporal-spatial free-form QA",
        "source": "STR_plm_rdcap",
        "video_path": "5.mp4",
        "question": "Who barks?",
        "answer": "the dog",
        "image_size": [200, 100],
        "key_frames": [{"idx": 3, "time": 1.5}, {"idx": 9, "time": 4.5}],
        "key_items": {"3": {"dog": [[0.1, 0.2, 0.5, 0.8]]}},
    },
    {
        "id": "box",
        "task": "visual QA",
        "source": "gqa",
        "image_path": "6.jpg",
        "question": "Where is the dog?",
        "answer": "<obj>dog</obj><box>[10, 20, 30, 40]</box>",
        "image_size": [200, 100],
    },
]
WRONG = [
    {**ROWS[0], "id": "no options", "question": "What is it?"},
    {**ROWS[2], "id": "no window", "answer": "[4, 1]"},
    {**ROWS[1], "id": "no task", "task": "gossip"},
    {**ROWS[1], "id": "no media", "video_path": None},
    {**ROWS[1], "id": "outside", "video_path": "../../../6.mp4"},
    ROWS[2],
    "no row",
]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "STGR-RL.json"
    path.write_text(json.dumps(ROWS + WRONG))
    return path


def test_all_six_tasks_are_read(file, tmp_path):
    records = read_stgr(file, tmp_path / "videos")
    by_id = {example.id: example for example in records.examples}
    assert [(e.answer_type, e.question_type) for e in records.examples] == [
        ("mcq", "general"),
        ("text", "general"),
        ("span", "temporal"),
        ("mcq", "temporal"),
        ("text", "spatio-temporal"),
        ("boxes", "visual"),
    ]
    choice, both = by_id["choice"], by_id["which and when"]
    assert (choice.question, choice.options, choice.answer) == ("What is it?", ("a dog", "a cat"), "B")
    assert choice.media[0].path == str(tmp_path / "videos/videor1/a/1.mp4")
    assert by_id["7"].response == "<think>It barks.</think><answer>a dog</answer>"
    assert gold_span(by_id["when"]) == (1.5, 4.0)
    assert (both.answer, both.options, both.meta["window"]) == ("A", ("a dog", "a cat"), [2.0, 3.5])
    assert both.media[0].path.endswith("videos/tvg_r1/videomind_data/4.mp4")
    first, second = key_frames(by_id["where and when"])
    assert (first.time, first.objects) == (1.5, {"dog": ((0.1, 0.2, 0.5, 0.8),)}) and not second.objects
    assert by_id["where and when"].coordinates == "shares" and by_id["box"].coordinates == "file"
    assert gold_boxes(by_id["box"]) == ((10.0, 20.0, 30.0, 40.0),) and by_id["box"].media[0].type == "image"


def test_what_cannot_be_used_is_named_with_its_reason(file, tmp_path):
    reasons = {rejected.id: rejected.reason for rejected in read_stgr(file, tmp_path / "videos").rejected}
    assert list(reasons) == ["no options", "no window", "no task", "no media", "outside", "when", "STGR-RL.json:13"]
    assert "row 7: the question ends in no options" in reasons["no options"] and "gossip" in reasons["no task"]
    assert "earlier row" in reasons["when"]


def test_the_command_writes_examples_and_lists_the_others(file, tmp_path, capsys):
    out = tmp_path / "train.jsonl"
    arguments = ["--from", "stgr", "--media", str(tmp_path / "videos"), "--out", str(out)]
    for _ in range(2):
        assert main(["data", "convert", str(file), *arguments]) == 0
    assert capsys.readouterr().out.count("6 examples written") == 2
    assert [example.id for example in read_examples(out)] == [str(row["id"]) for row in ROWS]
    assert len((tmp_path / "train.jsonl.rejected.jsonl").read_text().splitlines()) == len(WRONG)


@pytest.mark.parametrize(
    ("content", "reason"), [("{", "is no JSON"), ("{}", "holds no list"), (None, "cannot be read")]
)
def test_a_file_that_is_none_is_refused(tmp_path, content, reason):
    path = tmp_path / "STGR-RL.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=reason):
        read_stgr(path, tmp_path)


def test_each_task_brings_a_system_text_that_asks_for_its_form_and_the_preset_rewards_that_form(tmp_path):
    """An answer in the form that is asked for earns all that the preset gives for answer and format."""
    (tmp_path / "rows.json").write_text(json.dumps(ROWS))
    examples = {example.id: example for example in read_stgr(tmp_path / "rows.json", tmp_path).examples}
    both = examples["which and when"]
    assert all("<think>" in example.system and "<answer>" in example.system for example in examples.values())
    assert "Correct Option: LETTER" in both.system and "Correct Option" not in examples["choice"].system
    assert "</box>at<t>" in examples["where and when"].system and "<box>" not in examples["when"].system
    said = "<think>From <t>2.0</t>s on, to <t>3.5</t>s.</think>"
    answer = "<answer>From <t>2.0</t>s to <t>3.5</t>s.\nCorrect Option: A</answer>"
    table = make_rewarder(RewardOptions("visd"))([Completion(said + answer, 9)], [both])
    assert table.total.tolist() == [4.0] and not table.failures
