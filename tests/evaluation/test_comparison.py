"""Two evaluations of the same questions: what changed, how sure that is, and what cannot be compared."""

import json
from fractions import Fraction
from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jvlmm.cli.main import main
from jvlmm.errors import DataError
from jvlmm.evaluation.comparison import compare, paired_interval, read_predictions


def row(name, correct, question_type="event", **fields):
    return {
        "id": name,
        "correct": correct,
        "score": float(correct),
        "question_type": question_type,
        "answer_type": "mcq",
        "parsed": "A",
        "gold": "A" if correct else "B",
        **fields,
    }


def rows(corrects, **fields):
    return [row(str(number), correct, gold="A", **fields) for number, correct in enumerate(corrects)]


@pytest.mark.parametrize(
    ("counts", "interval"),
    [
        # Both right, gained, lost, neither. Newcombe 1998, method 10, gives 0.0569 to 0.3404 for the first.
        ((36, 12, 2, 0), (0.0569, 0.3404)),
        ((54, 0, 0, 0), (-0.0664, 0.0664)),  # by hand: z² / (n + z²) to either side
    ],
)
def test_the_interval_of_paired_proportions_is_newcombes(counts, interval):
    assert paired_interval(*counts) == pytest.approx(interval, abs=2e-4)


@given(st.tuples(*[st.integers(0, 30)] * 4).filter(sum))
def test_the_interval_holds_the_difference_and_turns_with_the_sides(counts):
    both, gained, lost, neither = counts
    low, high = paired_interval(*counts)
    assert -1 <= low <= (gained - lost) / sum(counts) + 1e-12
    assert (gained - lost) / sum(counts) - 1e-12 <= high <= 1
    assert paired_interval(both, lost, gained, neither) == pytest.approx((-high, -low))


def test_flips_and_mcnemar():
    first = rows([True] * 6 + [False] * 6 + [True] * 2)
    second = rows([True] * 12 + [False] * 2)
    figures = compare(first, second)
    overall = figures["groups"]["overall"]
    assert (overall["n"], overall["gained"], overall["lost"]) == (14, 6, 2)
    assert overall["difference"] == pytest.approx(4 / 14)
    exact = 2 * sum(Fraction(comb(8, k), 2**8) for k in (6, 7, 8))
    assert overall["p"] == pytest.approx(float(exact))
    assert [flip["change"] for flip in figures["flips"]] == ["gained"] * 6 + ["lost"] * 2
    assert compare(first, first)["groups"]["overall"]["p"] == 1.0


def test_types_are_apart_and_what_one_lacks_is_listed():
    first = [row("1", True), row("2", False, "order"), row("3", True)]
    second = [row("2", False, "order", score=0.25), row("1", True), row("4", True)]
    figures = compare(first, second)
    assert {name: group["n"] for name, group in figures["groups"].items()} == {
        "overall": 2,
        "answer type mcq": 2,
        "question type event": 1,
        "question type order": 1,
    }
    assert figures["groups"]["question type order"]["score_difference"] == 0.25
    assert (figures["only_first"], figures["only_second"]) == (["3"], ["4"])


def test_repeated_ids_are_paired_in_order():
    first, second = [row("1", True), row("1", False)], [row("1", True), row("1", True, gold="B")]
    overall = compare(first, second)["groups"]["overall"]
    assert (overall["n"], overall["gained"]) == (2, 1)


@pytest.mark.parametrize(
    ("second", "reason"),
    [
        ([row("1", True, gold="C")], "1: its gold is 'A' in the first and 'C' in the second"),
        ([row("9", True)], "no question in common"),
    ],
)
def test_other_questions_are_refused(second, reason):
    with pytest.raises(DataError, match=reason):
        compare([row("1", True)], second)


def test_the_verb(tmp_path, capsys):
    for name, corrects in (("a", [True, False, False]), ("b", [True, True, False])):
        folder = tmp_path / name / "predictions"
        folder.mkdir(parents=True)
        (folder / "eval.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows(corrects)))
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b/predictions/eval.jsonl")]) == 0
    told = capsys.readouterr().out
    assert "overall" in told and "+0.333" in told and "gained: 1 (event)" in told
    assert main(["compare", str(tmp_path / "a/results.json"), str(tmp_path / "b"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["groups"]["overall"]["gained"] == 1


def test_what_is_no_file_of_predictions_is_one_line(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"id": "1"}\n')
    for path, reason in ((tmp_path / "x.jsonl", "line 1: no prediction"), (tmp_path / "none", "no predictions")):
        with pytest.raises(DataError, match=reason):
            read_predictions(path)
    (tmp_path / "y.jsonl").touch()
    with pytest.raises(DataError, match="name the file itself"):
        read_predictions(tmp_path)


def test_a_response_may_hold_what_unicode_takes_for_the_end_of_a_line(tmp_path):
    (tmp_path / "x.jsonl").write_text(
        json.dumps(row("1", True, raw="a\u2028b\x85c"), ensure_ascii=False) + "\n", "utf-8"
    )
    assert [found["raw"] for found in read_predictions(tmp_path)] == ["a\u2028b\x85c"]
