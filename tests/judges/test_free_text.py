"""Free texts marked by a judge, by ROUGE or by a user's function; what has no mark says why."""

from collections import Counter

import pytest

from jvlmm.data.example import Example
from jvlmm.errors import ConfigError
from jvlmm.judges import free_text
from jvlmm.judges.free_text import Scorer, ScoringOptions
from jvlmm.judges.verdict import Verdict
from jvlmm.judges.wording import SCORING_INSTRUCTION

JUDGED = ScoringOptions("judge", judge_url="http://localhost:1/v1", judge_model="some-model", judge_concurrency=3)
EXAMPLES = [Example(name, "What?", "a dog", "text") for name in "abc"]


class Judge:
    """Marks as it is told; None is a failure, a verdict may have no mark."""

    def __init__(self, options, instruction):
        assert (options.model, options.concurrency, instruction) == ("some-model", 3, SCORING_INSTRUCTION)
        self.failures, self.checked = Counter(), 0

    def check(self):
        self.checked += 1

    def __call__(self, cases):
        marks = {"right": Verdict("", answer=0.75), "wrong": Verdict("", answer=0.0), "odd": Verdict("so")}
        self.failures.update("HTTP 500" for case in cases if case.text == "broken")
        return [marks.get(case.text) for case in cases]


def test_a_judges_marks_are_the_scores(monkeypatch):
    monkeypatch.setattr(free_text, "EndpointJudge", Judge)
    scorer = Scorer(JUDGED)
    scorer.check()
    assert scorer._judge.checked == 1 and scorer.at_once == 3
    assert scorer(["right", "wrong"], EXAMPLES[:2]) == [0.75, 0.0]
    assert scorer(["right", "broken"], EXAMPLES[:2]) == [0.75, "the judge did not score it (HTTP 500)"]
    assert scorer(["odd"], EXAMPLES[:1]) == ["the judge did not score it (it gave no mark)"]
    assert scorer.described() == {"text": "judge", "threshold": 0.5, "judge": "some-model"}


def test_only_free_texts_are_named():
    choice = Example("m", "Which?", "B", "mcq", options=("left", "right"))
    assert [Scorer(JUDGED).name_for(example) for example in (EXAMPLES[0], choice)] == ["judge some-model", None]
    assert Scorer().name_for(EXAMPLES[0]) is None and Scorer().at_once == 1


def test_rouge_needs_a_gold_answer_that_it_can_read():
    right, unusable = Scorer(ScoringOptions("rouge"))(
        ["a dog", "x"], [EXAMPLES[0], Example("u", "What?", "猫", "text")]
    )
    assert right == 1 and "letters a to z" in unusable


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text": "bleu"}, "scoring.text='bleu' is unknown; choose exact, rouge, judge, or a function"),
        ({"text": "judge"}, "needs scoring.judge_url and scoring.judge_model"),
        ({"text": "judge", "judge_url": "ftp://x", "judge_model": "m"}, "no http or https address"),
        ({"judge_url": "http://localhost/v1"}, "scoring.judge_url has no effect with scoring.text='exact'"),
        ({"text": "rouge", "judge_model": "m"}, "has no effect with scoring.text='rouge'; set scoring.text=judge"),
        ({"threshold": 0.0}, "scoring.threshold=0.0"),
        ({"threshold": 1.5}, "scoring.threshold=1.5"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(ConfigError, match=message):
        ScoringOptions(**options)


def test_a_file_that_cannot_be_used_is_refused_before_anything_is_asked(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        Scorer(ScoringOptions(f"{tmp_path}/none.py:f")).check()


@pytest.mark.parametrize("url", ["http://me:secret@host/v1", "https://secret@host/v1", "http://host/v1?key=secret"])
def test_a_secret_in_the_address_is_refused_and_not_shown(url):
    with pytest.raises(ConfigError, match="holds a user name, password or query") as refused:
        ScoringOptions("judge", judge_url=url, judge_model="m")
    assert "secret" not in str(refused.value)
