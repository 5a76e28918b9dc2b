"""Rows as no one should write them: through reading, training, scoring and rewards none is lost, none ends the run.

JVLMM_FUZZ_ROWS sets how many rows there are (300 by default; the release is tried with 3400).
"""

import json
import os
import random
import string
from collections import Counter
from types import SimpleNamespace

import pytest
from PIL import Image

from jvlmm.data.batch import BatchOptions
from jvlmm.data.check import data_check
from jvlmm.data.conversations import Conversations
from jvlmm.data.loader import PipelineOptions, make_loader
from jvlmm.data.processor import ProcessorOptions
from jvlmm.data.prompt_stream import PromptStream
from jvlmm.data.records import read_records, write_examples
from jvlmm.data.rejections import Rejected, Rejections
from jvlmm.data.stgr import read_stgr
from jvlmm.evaluation.evaluate import evaluate
from jvlmm.rewards.completion import Completion
from jvlmm.rewards.rewarder import make_rewarder
from jvlmm.rewards.terms import RewardOptions
from jvlmm.rollout.generator import Response
from jvlmm.rollout.sampling import SamplingOptions
from jvlmm.video.workers import Decoder

ROWS = int(os.environ.get("JVLMM_FUZZ_ROWS", "300"))
OPTIONS = BatchOptions(batch_size=4, length_buckets=(96, 256))
FAST = PipelineOptions(num_threads=2, read_ahead=8, prefetch=1)

TEXTS = (
    "",
    " ",
    "\x00",
    "\x1b[2J\x07",
    "a\r\nb\u2028c",
    "\ud83d",
    "x\udfff",
    "\ufeffx",
    "\u202egnirts",
    "Ａ",
    "−3",
    "１/２",
    "²",
    "nan",
    "-inf",
    "1e999",
    "9" * 400,
    "1/0",
    "0/0",
    "1:60:99",
    "<image>",
    "<video><image>",
    "<|im_end|>",
    "<|image_pad|>",
    "<think></think><answer></answer>",
    "<answer>A</answer>",
    "\\boxed{",
    "\\boxed{\\frac{1}{0}}",
    "[[[[",
    "[1e400, 2]",
    "[1,2,3,4",
    "[[0,0,1,1],[nan,0,1,1]]",
    '{"start": 1e400, "end": {}}',
    "{{ 7 * 7 }}{% for x in y %}",
    "../../etc/passwd",
    "/dev/zero",
    "x" * 3000,
    "A. " * 40,
    "Ω≈ç√∫😀",
)
VALUES = (
    None,
    True,
    0,
    -1,
    1.5,
    1e308,
    -0.0,
    float("nan"),
    float("inf"),
    10**400,
    -(10**400),
    [],
    {},
    [[]],
    [None],
    [1, 2],
    ["a", 3],
    {"a": {"b": [float("nan")]}},
    [{"type": "image"}],
    [{"type": "video", "path": "a.png", "start": 1e300, "end": 1.5e300}],
    [{"type": "image", "path": "a.png", "start": 10**400}],
    [{"time": "x", "objects": {"o": [[1, 2]]}}],
    [{"time": float("nan"), "objects": 7}],
)
ANSWERS = {
    "mcq": "B",
    "yesno": "yes",
    "number": "3",
    "text": "a red circle",
    "span": "1.5 to 4",
    "boxes": "[1, 2, 30, 40]",
}
FIELDS = (
    *("id", "question", "answer", "answer_type", "options", "media", "question_type", "response", "learn", "hint"),
    *("system", "earlier", "benchmark", "split", "meta", "origin", "pass_rate", "coordinates"),
)
META = ("window", "evidence", "duration", "times", "size", "source", "pass_rate")


def text(rng):
    pieces = [rng.choice(TEXTS) for _ in range(rng.randint(1, 3))]
    return "".join(rng.choice((piece, piece, rng.choice(string.printable))) for piece in pieces)


def value(rng):
    return text(rng) if rng.random() < 0.5 else rng.choice(VALUES)


def good_row(rng, number):
    kind = rng.choice(list(ANSWERS))
    row = {"id": f"r{number}", "question": "Which shape moves left?", "answer": ANSWERS[kind], "answer_type": kind}
    row["response"] = f"<think>red</think><answer>{ANSWERS[kind]}</answer>"
    row["media"] = rng.choice([[], [{"type": "image", "path": rng.choice(["a.png", "b.png", "lost.png"])}]])
    if kind == "mcq":
        row["options"] = ["red circle", "blue square"]
    if rng.random() < 0.2:
        row["earlier"] = [{**row, "id": "turn", "media": [], "earlier": []}]
    return row


def spoilt(rng, row):
    for _ in range(rng.choice((0, 1, 1, 2))):
        where = rng.random()
        if where < 0.6:
            row[rng.choice(FIELDS)] = value(rng)
        elif where < 0.8:
            meta = row["meta"] if isinstance(row.get("meta"), dict) else {}
            row["meta"] = {**meta, rng.choice(META): value(rng)}
        elif row.get("media") and isinstance(row["media"], list) and isinstance(row["media"][0], dict):
            row["media"][0] = {**row["media"][0], rng.choice(("type", "path", "start", "end")): value(rng)}
        else:
            row["options"] = [text(rng) for _ in range(rng.randint(0, 5))]
    return row


def line(rng, number):
    """The bytes of a row; now and then they are torn, or of another encoding."""
    data = json.dumps(spoilt(rng, good_row(rng, number)), ensure_ascii=rng.random() < 0.5)
    data = data.encode("utf-8", "surrogatepass" if rng.random() < 0.5 else "backslashreplace")
    if rng.random() < 0.05:
        cut = rng.randrange(1, len(data))
        data = data[:cut] + bytes(rng.randrange(256) for _ in range(rng.randint(0, 3)))
    return data.replace(b"\n", b" ").replace(b"\r", b" ").strip() or b"{"


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """(the file, its Records)."""
    folder, rng = tmp_path_factory.mktemp("fuzz"), random.Random(20)
    for name, size in (("a.png", (56, 56)), ("b.png", (84, 28))):
        Image.new("RGB", size, "red").save(folder / name)
    path = folder / "rows.jsonl"
    path.write_bytes(b"\n".join(line(rng, number) for number in range(ROWS)) + b"\n")
    return path, read_records(path)


def foreseen(rejected):
    """The reasons are written for people, in one line that any file takes; none is an exception nobody has met."""
    for row in rejected:
        assert "unexpected" not in row.reason, row.reason
        assert len(row.reason.splitlines()) == 1 and row.reason.isprintable() and len(row.reason) < 2000, row.reason
        f"{row.id}{row.reason}".encode()
    return len(rejected)


def test_every_row_is_read_or_listed(rows, tmp_path):
    path, records = rows
    assert len(records.rows) == ROWS and 0.3 * ROWS < len(records.examples) < 0.9 * ROWS
    assert foreseen(records.rejected) == ROWS - len(records.examples)
    rejections = Rejections(tmp_path / "rejected.jsonl")
    for rejected in records.rejected:
        rejections.add(rejected)
    lines = (tmp_path / "rejected.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    assert len([json.loads(entry, parse_constant=pytest.fail) for entry in lines]) == len(records.rejected)
    again = path.with_name("again.jsonl")
    write_examples(again, records.examples)
    assert [e.id for e in read_records(again).examples] == [e.id for e in records.examples]


def test_every_example_is_trained_on_or_listed(rows, drawing, tmp_path):
    _, records = rows
    with Decoder(workers=0) as decoder:
        processor = drawing.processor(decoder, max_length=256)
        with make_loader(records.examples, processor, OPTIONS, 0, 1, tmp_path / "rejected.jsonl", FAST) as loader:
            seen = Counter(name for _, ids in loader for name in ids)
            json.dumps(loader.get_state(), allow_nan=False)
        assert seen.total() + foreseen(loader.rejections.rows) == len(records.examples) and max(seen.values()) == 1
        checked = data_check(rows[0], processor, rows=records.rows)
        assert checked["examples"] == ROWS == checked["usable"] + len(checked["problems"])
        assert sum(group["count"] for group in checked["reasons"]) == len(checked["problems"])
        joined = list(Conversations(records.examples, 3))
        assert sum(1 + len(row.earlier) for row in joined) >= len(records.examples)


def test_every_example_is_asked_or_listed_and_rewards_never_raise(rows, drawing):
    _, records = rows
    rng = random.Random(21)
    for preset in ("default", "video-r1"):
        rewarder, rejections = make_rewarder(RewardOptions(preset=preset)), Rejections(None)
        asked = []
        with Decoder(workers=0) as decoder:
            processor = drawing.processor(decoder, max_length=256)
            arguments = records.examples, processor, OPTIONS, 1, 0, rejections, rewarder.check, FAST
            with PromptStream(*arguments) as stream:
                while len({prompt.example.id for prompt in asked}) + len(rejections) < len(records.examples):
                    asked += next(stream)[0]
                    assert len(asked) <= 3 * len(records.examples)
        foreseen(rejections.rows)
        examples = [prompt.example for prompt in asked]
        completions = [Completion(said(rng, example), 5, True) for example in examples]
        table = rewarder(completions, examples)
        assert len(table.total) == len(examples) and not table.failures, table.failures


def said(rng, example):
    """Something a model might write, and much that it would not."""
    answer = rng.choice((example.answer, text(rng), text(rng)))
    return rng.choice((answer, f"<think>{text(rng)}</think><answer>{answer}</answer>", f"<answer>{answer}"))


class Saying:
    """Says something about every example, or nothing."""

    options, params = SamplingOptions(), {}
    processor = SimpleNamespace(options=ProcessorOptions())

    def stream(self, examples):
        rng = random.Random(22)
        for row, example in enumerate(examples):
            yield row, Response(example.id, said(rng, example), (1,), True)


def test_every_row_is_scored_or_listed(rows, tmp_path):
    _, records = rows
    for protocol in ("direct", "think"):
        path = tmp_path / f"{protocol}.jsonl"
        figures = evaluate(Saying(), records.examples, path, protocol, unusable=records.rejected)
        assert figures["counts"]["overall"] == ROWS
        json.dumps(figures, allow_nan=False)
        foreseen([Rejected(row["id"], row["error"]) for row in figures["failed"]])
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]
        predictions = [json.loads(entry, parse_constant=pytest.fail) for entry in lines]
        assert len(predictions) == ROWS and all(0 <= prediction["score"] <= 1 for prediction in predictions)


STGR = {
    "id": "a",
    "task": "temporal QA",
    "source": "timerft",
    "video_path": "3.mp4",
    "question": "When?\nA. red\nB. blue",
    "answer": "[1.5, 4]",
    "image_size": [200, 100],
    "key_frames": [{"idx": 3, "time": 1.5}],
    "key_items": {"3": {"dog": [[0.1, 0.2, 0.5, 0.8]]}},
    "reasoning_process": "It barks.",
}
TASKS = ("General video QA MCQ", "temporal QA", "temporal QA (MCQ)", "temporal-spatial free-form QA", "visual QA", "?")


def test_every_row_of_a_list_of_stgr_is_read_or_listed(tmp_path):
    rng = random.Random(23)
    rows = []
    for number in range(ROWS):
        row = {**STGR, "id": number, "task": rng.choice(TASKS), "answer": rng.choice(("B", "[1.5, 4]", "B\n[1, 2]"))}
        for _ in range(rng.choice((0, 1, 2))):
            row[rng.choice(list(STGR))] = rng.choice((value(rng), "1.0 to 2.0", "", "[0.1 0.2 0.3 0.4]"))
        rows.append(rng.choice((row, row, row, row, value(rng))))
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    records = read_stgr(tmp_path / "rows.json", tmp_path)
    assert len(records.rows) == ROWS and len(records.examples) > 0.1 * ROWS
    for rejected in records.rejected:
        f"{rejected.id}{rejected.reason}".encode()
        assert rejected.reason.isprintable()
    write_examples(tmp_path / "rows.jsonl", records.examples)
    assert len(read_records(tmp_path / "rows.jsonl").examples) == len(records.examples)
