"""Scripted answers in, figures and prediction files out; what fails is counted, listed and harms nothing."""

import dataclasses
import json
import os
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvlmm.data.example import Example
from jvlmm.data.processor import ProcessorOptions
from jvlmm.data.rejections import Rejected
from jvlmm.errors import ConfigError, DataError
from jvlmm.evaluation.evaluate import evaluate
from jvlmm.judges.free_text import Scorer, ScoringOptions
from jvlmm.rollout.generator import Response
from jvlmm.rollout.sampling import SamplingOptions
from jvlmm.sharding.fingerprint import fingerprint

EXAMPLES = (
    Example("a", "Which?", "B", "mcq", options=("red", "blue"), question_type="attribute"),
    Example("b", "When?", "1.0 to 3.0", "span", question_type="grounding"),
    Example("c", "How many?", "3", "number", question_type="count"),
    Example("d", "How many?", "many", "number", question_type="count"),  # no gold number
    Example("e", "Where?", "[0,0,10,10]", "boxes", question_type="where"),
)
ANSWERS = {
    "a": "<think>…</think><answer>B</answer>",
    "b": "<t>2.0</t>s to <t>3.0</t>s",
    "c": None,
    "d": "3",
    "e": "<think>there</think>\n<answer>[0,0,10,10]</answer>",
}


class Scripted:
    """Answers by id, in reverse order; an answer of None is a failure."""

    options = SamplingOptions(max_tokens=9, seed=4)
    processor = SimpleNamespace(options=ProcessorOptions(style="think"))

    def __init__(self, answers=ANSWERS):
        self.answers = answers
        self.params = {"w": jnp.arange(6.0)}

    def stream(self, examples):
        for row in reversed(range(len(examples))):
            name = examples[row].id
            text = self.answers[name]
            if isinstance(text, Exception):
                raise text
            if text is None:
                yield row, Response(name, error=f"{name}: no such file")
            else:
                yield row, Response(name, text, (5, 6), True, ((0, 15),), 8, 20, 0.123456)


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_direct_protocol(tmp_path):
    path, seen = tmp_path / "predictions" / "test.jsonl", []
    figures = evaluate(Scripted(), EXAMPLES, path, "direct", on_progress=lambda *done: seen.append(done))
    assert seen == [(i, 5) for i in range(1, 6)]
    assert figures["accuracy"]["overall"] == pytest.approx(3 / 5)
    assert figures["accuracy"]["mcq"] == 1 and figures["accuracy"]["count"] == 0
    assert (figures["tiou"], figures["box_iou"]) == (0.5, 1)
    assert [row["id"] for row in figures["failed"]] == ["c", "d"]
    assert "'d'" in figures["failed"][1]["error"]
    rows = read(path)
    assert [row["id"] for row in rows] == list("abcde")
    assert rows[0]["parsed"] == "B" and rows[0]["parse_method"] == "tag" and "error" not in rows[0]
    assert rows[1]["parsed"] == [2.0, 3.0] and rows[1]["score"] == 0.5 and rows[1]["frames"] == [[0, 15]]
    assert rows[2]["error"] == "c: no such file" and rows[2]["correct"] is False
    assert {"raw", "visual_tokens", "text_tokens", "latency_s"} <= set(rows[4])
    assert list(path.parent.iterdir()) == [path]
    json.dumps(figures)


def test_rows_that_are_no_examples_are_wrong_and_listed(tmp_path):
    """Under the type that the row names: a choice without a right letter is no text."""
    path, texts = tmp_path / "p.jsonl", sum(example.answer_type == "mcq" for example in EXAMPLES)
    unusable = [Rejected("f", "line 6: no question"), Rejected("g", "line 7: the answer is no letter", "", "mcq")]
    figures = evaluate(Scripted(), EXAMPLES, path, "direct", unusable=unusable)
    assert figures["accuracy"]["overall"] == pytest.approx(3 / 7)
    assert figures["failed"][-1] == {"id": "g", "error": "line 7: the answer is no letter"}
    assert [row["id"] for row in read(path)] == list("abcdefg")
    types = figures["answer_types"]
    assert types["mcq"]["n"] == texts + 1 and types["unusable"]["n"] == 1


def test_the_think_protocol_counts_only_answers_in_its_format(tmp_path):
    figures = evaluate(Scripted(), EXAMPLES, tmp_path / "p.jsonl", "think")
    assert figures["accuracy"]["grounding"] == 0 and figures["tiou"] == 0
    assert figures["accuracy"]["attribute"] == 1 and figures["box_iou"] == 1
    assert figures["format_rate"] == pytest.approx(2 / 3)
    assert read(tmp_path / "p.jsonl")[1]["parsed"] == [2.0, 3.0], "what was said is kept"


def test_the_manifest_says_how_it_was_asked(tmp_path):
    manifest = evaluate(Scripted(), EXAMPLES, tmp_path / "p.jsonl", "think")["manifest"]
    assert (manifest["protocol"], manifest["prompt"], manifest["seed"]) == ("think", "think", 4)
    assert manifest["frames"]["sampler"] == "qwen-vl-utils" and manifest["pixels"]["max_pixels"] > 0
    assert manifest["sampling"]["max_tokens"] == 9 and len(manifest["model"]) == 16


def test_an_unknown_protocol_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="lmms-eval.*direct, think"):
        evaluate(Scripted(), EXAMPLES, tmp_path / "p.jsonl", "lmms-eval")


def test_an_interrupted_evaluation_leaves_earlier_predictions_and_what_it_had(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text("earlier\n")
    with pytest.raises(KeyError):
        evaluate(Scripted(answers={**ANSWERS, "a": KeyError("device lost")}), EXAMPLES, path)
    assert path.read_text() == "earlier\n"
    _, *rows = read(tmp_path / "p.jsonl.partial")
    assert [row["prediction"]["id"] for row in rows] == list("edcb")


class Asked(Scripted):
    """Remembers who was asked."""

    def stream(self, examples):
        self.asked = [example.id for example in examples]
        yield from super().stream(examples)


def interrupted(path):
    """An evaluation of all rows that was lost at the last one, `a`; c failed, and d cannot be scored."""
    with pytest.raises(KeyError):
        evaluate(Scripted(answers={**ANSWERS, "a": KeyError("device lost")}), EXAMPLES, path, resume=True)


def test_an_interrupted_evaluation_goes_on_with_what_it_had_not_answered(tmp_path, capsys):
    told = [], []
    whole = evaluate(Scripted(), EXAMPLES, tmp_path / "whole.jsonl", on_response=told[0].append)
    path = tmp_path / "p.jsonl"
    interrupted(path)
    asked, seen = Asked(), []
    figures = evaluate(
        asked,
        EXAMPLES,
        path,
        on_response=told[1].append,
        on_progress=lambda *done: seen.append(done),
        resume=True,
    )
    assert asked.asked == ["a", "c", "d"], "who failed is asked again"
    assert figures == whole and read(path) == read(tmp_path / "whole.jsonl")
    assert seen == [(3, 5), (4, 5), (5, 5)]
    said = [sorted((r.id, r.text, r.tokens, r.frames, r.error) for r in responses) for responses in told]
    assert said[0] == said[1]
    assert list(tmp_path.glob("*.partial")) == [] and capsys.readouterr().err == f"{path}: goes on after 2 answers\n"


@pytest.mark.parametrize("torn", [b'{"row": 3, "exam', "…".encode()[:2]])
def test_a_torn_line_of_an_interrupted_evaluation_is_asked_again(tmp_path, torn):
    path = tmp_path / "p.jsonl"
    interrupted(path)
    partial = tmp_path / "p.jsonl.partial"
    head, first, *_ = partial.read_bytes().splitlines(keepends=True)
    partial.write_bytes(head + first + torn)
    evaluate(asked := Asked(), EXAMPLES, path, resume=True)
    assert asked.asked == list("abcd") and [row["id"] for row in read(path)] == list("abcde")


@pytest.mark.parametrize("other", ["weights", "protocol", "sampling", "question", "unasked"])
def test_what_was_answered_otherwise_is_asked_again(tmp_path, other):
    path, asked, rows, protocol = tmp_path / "p.jsonl", Asked(), list(EXAMPLES), "direct"
    interrupted(path)
    if other == "weights":
        asked.params = {"w": jnp.arange(1.0, 7.0)}
    elif other == "protocol":
        protocol = "think"
    elif other == "sampling":
        asked.options = SamplingOptions(max_tokens=8, seed=4)
    elif other == "question":
        rows[1] = dataclasses.replace(rows[1], question="And when?")
    evaluate(asked, rows, path, protocol, resume=other != "unasked")
    assert asked.asked == (list("abcd") if other == "question" else list("abcde"))


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file/p\.jsonl: predictions cannot be written"):
        evaluate(Scripted(), EXAMPLES, tmp_path / "file" / "p.jsonl")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full to stand for a full disk")
def test_a_full_disk_is_named_and_spares_earlier_predictions(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text("earlier\n")
    (tmp_path / "p.jsonl.partial").symlink_to("/dev/full")
    with pytest.raises(DataError, match=r"p\.jsonl: predictions cannot be written \(No space left"):
        evaluate(Scripted(), EXAMPLES, path)
    assert path.read_text() == "earlier\n"


def test_fingerprint_tells_models_apart_and_ignores_sharding():
    base = {"a": np.arange(24, dtype=np.float32).reshape(8, 3), "b": np.ones(4, jnp.bfloat16)}
    mark = fingerprint(base)
    assert mark == fingerprint({"a": base["a"].copy(), "b": base["b"].copy()})
    swapped = base["a"].copy()
    swapped[[0, 1]] = swapped[[1, 0]]
    flipped = base["a"].copy()
    flipped[7, 2] = np.nextafter(flipped[7, 2], 0, dtype=np.float32)
    for other in (
        {**base, "a": swapped},
        {**base, "a": flipped},
        {**base, "a": base["a"].reshape(3, 8)},
        {"a": base["a"], "c": base["b"]},
        {**base, "b": base["b"].astype(np.float32)},
    ):
        assert fingerprint(other) != mark
    mesh = jax.make_mesh((4,), ("x",), devices=jax.devices()[:4])
    sharded = jax.device_put(base["a"], jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x")))
    assert fingerprint({**base, "a": sharded}) == mark


FREE = (
    Example("a", "What?", "the red circle", "text"),
    Example("b", "What?", "a dog", "text"),
    Example("c", "Which?", "B", "mcq", options=("red", "blue")),
    Example("d", "What?", "a cat", "text"),
)
SAID = {"a": "a red circle moves", "b": "dogs", "c": "B", "d": None}


@pytest.mark.parametrize(
    ("scoring", "scores"),
    [("exact", [0, 0, 1, 0]), ("rouge", [18 / 35, 4 / 9, 1, 0]), ("FILE", [1, 0.25, 1, 0])],
)
def test_free_texts_are_scored_as_the_options_say(tmp_path, scoring, scores):
    """The others are read and compared as ever; a scored prediction names what scored it."""
    file = tmp_path / "mine.py"
    file.write_text("def likeness(text, example):\n    return 1.0 if 'circle' in text else 0.25\n")
    scoring = f"{file}:likeness" if scoring == "FILE" else scoring
    figures = evaluate(Scripted(SAID), FREE, tmp_path / "p.jsonl", scorer=Scorer(ScoringOptions(scoring)))
    lines = read(tmp_path / "p.jsonl")
    assert [line["score"] for line in lines] == pytest.approx(scores)
    by = None if scoring == "exact" else scoring
    assert [line.get("scored_by") for line in lines] == [by, by, None, None]
    assert [line["correct"] for line in lines] == [score >= 0.5 for score in scores]
    assert figures["manifest"]["free_text"]["text"] == scoring


def test_under_think_a_free_text_without_its_form_is_worth_nothing(tmp_path):
    said = {"a": "the red circle", "b": "<think>so</think><answer>a dog</answer>", "c": "B", "d": "x"}
    evaluate(Scripted(said), FREE, tmp_path / "p.jsonl", "think", scorer=Scorer(ScoringOptions("rouge")))
    assert [line["score"] for line in read(tmp_path / "p.jsonl")][:2] == pytest.approx([0, 1])


def test_a_function_that_fails_costs_its_rows_alone(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def f(text, example):\n    return {'a': 0.5, 'b': 7}[example.id]\n")
    figures = evaluate(
        Scripted(SAID | {"d": "x"}), FREE, tmp_path / "p.jsonl", scorer=Scorer(ScoringOptions(f"{file}:f"))
    )
    assert [line["score"] for line in read(tmp_path / "p.jsonl")] == [0.5, 0, 1, 0]
    reasons = {failed["id"]: failed["error"] for failed in figures["failed"]}
    assert "gave no value from 0 to 1" in reasons["b"] and "KeyError: 'd'" in reasons["d"]
