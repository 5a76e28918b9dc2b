"""Figures on disk: by question and answer type, in a directory that names them and is never overwritten."""

import json

import pytest

from jvlmm.errors import DataError
from jvlmm.evaluation.metrics import summarize, wilson_interval
from jvlmm.evaluation.predictions import Prediction
from jvlmm.evaluation.results import claim_directory, give_back, write_results

CONFIG, OTHER = '{"model": "m"}', '{"model": "m2"}'


def prediction(name, correct, question_type, answer_type, error=None):
    return Prediction(
        id=name,
        question_type=question_type,
        answer_type=answer_type,
        raw="",
        parsed=None,
        parse_method=None,
        correct=correct,
        score=float(correct),
        format_ok=True,
        finished=True,
        frames=(),
        visual_tokens=0,
        text_tokens=1,
        output_tokens=1,
        latency_s=0.0,
        error=error,
    )


def test_both_denominators_stand_by_question_and_answer_type():
    rows = [
        prediction("1", True, "event", "mcq"),
        prediction("2", False, "event", "mcq", error="broken"),
        prediction("3", False, "event", "span"),
        prediction("4", True, "order", "mcq"),
    ]
    figures = summarize(rows)
    event = figures["question_types"]["event"]
    assert (event["n"], event["failed"], event["accuracy"], event["accuracy_of_answered"]) == (3, 1, 1 / 3, 0.5)
    assert event["interval"] == wilson_interval(1, 3) and event["interval_of_answered"] == wilson_interval(1, 2)
    mcq = figures["answer_types"]["mcq"]
    assert (mcq["n"], mcq["failed"], mcq["accuracy_of_answered"]) == (3, 1, 1.0)
    assert figures["answer_types"]["span"]["score"] == 0.0


def test_a_directory_names_model_and_data_and_is_not_overwritten(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = claim_directory(None, "runs/mine/models/sft", "some/test.jsonl", CONFIG)
    assert first.as_posix() == "runs/eval/mine-sft_test"
    assert claim_directory(None, "runs/mine/models/sft", "some/test.jsonl", CONFIG) == first  # it was interrupted
    write_results(first, {"eval": {"accuracy": {"overall": 0.5}}})
    assert json.loads((first / "results.json").read_text())["evaluations"]["eval"]["accuracy"]["overall"] == 0.5
    second = claim_directory(None, "runs/mine/models/sft", "some/test.jsonl", CONFIG)
    assert second.name == "mine-sft_test-2"
    assert claim_directory(None, "runs/mine/models/sft", "some/test.jsonl", OTHER).name == "mine-sft_test-3"
    assert claim_directory(None, "jvlmm/assets/tiny", "runs/mine/data", CONFIG).name == "tiny_mine-data"


@pytest.mark.parametrize("model", [".", "..", "/", "a b/Ünï*"])
def test_names_are_plain(tmp_path, monkeypatch, model):
    monkeypatch.chdir(tmp_path)
    folder = claim_directory(None, model, "x.json", CONFIG)
    assert folder.parent.as_posix() == "runs/eval" and folder.is_dir()


def test_a_named_directory_with_results_is_refused(tmp_path):
    out = tmp_path / "out"
    claim_directory(str(out), "m", "d", CONFIG)
    with pytest.raises(DataError, match="an evaluation of other options; choose another folder"):
        claim_directory(str(out), "m", "d", OTHER)
    write_results(out, {})
    with pytest.raises(DataError, match="holds the results of an evaluation; choose another folder"):
        claim_directory(str(out), "m", "d", CONFIG)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be written"):
        claim_directory(str(tmp_path / "file/out"), "m", "d", CONFIG)


def test_an_evaluation_that_never_began_leaves_nothing(tmp_path):
    out = claim_directory(str(tmp_path / "out"), "m", "d", CONFIG)
    give_back(out)
    assert not out.exists()
    out = claim_directory(str(tmp_path / "out"), "m", "d", CONFIG)
    (out / "predictions").mkdir()
    give_back(out)
    assert (out / "config.json").is_file()
