"""How right a free text is, where equality says too little: by ROUGE, by a judge, or by a function of the user's."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from jvlmm.data.example import Example
from jvlmm.data.rejections import Rejected, attempted
from jvlmm.errors import ConfigError
from jvlmm.judges.endpoint import EndpointJudge, EndpointOptions
from jvlmm.judges.verdict import Case
from jvlmm.judges.wording import SCORING_INSTRUCTION
from jvlmm.rewards.completion import Completion
from jvlmm.rewards.graded import Grader
from jvlmm.rewards.overlap import mean_rouge, rouge_gold
from jvlmm.rewards.parsing import extract_answer
from jvlmm.rewards.user_files import is_user_file, load_user_reward


@dataclass(frozen=True)
class ScoringOptions:
    """How answers of type `text` are scored; those of all other types are read and compared."""

    text: str = "exact"  # exact, rouge (mean F of ROUGE-1, -2 and -L), judge, or a function as path/to/file.py:name
    threshold: float = 0.5  # value from which on a text that is not scored exactly counts as correct
    judge_url: str = ""  # of an OpenAI-compatible endpoint, such as http://localhost:8000/v1
    judge_model: str = ""
    judge_key_variable: str = "OPENAI_API_KEY"  # of the environment
    judge_concurrency: int = 8  # answers judged at once
    judge_deadline_s: float = 60.0  # for so many
    judge_cache: str | None = None  # folder of verdicts

    def __post_init__(self) -> None:
        if self.text not in ("exact", "rouge", "judge") and not is_user_file(self.text):
            raise ConfigError(
                f"scoring.text={self.text!r} is unknown; choose exact, rouge, judge, or a function of yours as "
                "path/to/file.py:name"
            )
        if not 0 < self.threshold <= 1:
            raise ConfigError(f"scoring.threshold={self.threshold} must be above 0 and at most 1")
        if self.text == "judge" and not (self.judge_url and self.judge_model):
            raise ConfigError("scoring.text=judge needs scoring.judge_url and scoring.judge_model")
        given = [name for name in ("judge_url", "judge_model", "judge_cache") if getattr(self, name)]
        if self.text == "judge":
            self.endpoint()
        elif given:
            raise ConfigError(
                f"scoring.{given[0]} has no effect with scoring.text={self.text!r}; set scoring.text=judge, or leave "
                "it out"
            )

    def endpoint(self) -> EndpointOptions:
        """Where the judge is asked."""
        return EndpointOptions(
            self.judge_url,
            self.judge_model,
            key_variable=self.judge_key_variable,
            concurrency=self.judge_concurrency,
            deadline_s=self.judge_deadline_s,
            max_tokens=256,
            cache=self.judge_cache,
        )


@dataclass(frozen=True)
class Scorer:
    """Scores responses as the options say. `check` before the first one."""

    options: ScoringOptions = ScoringOptions()

    @property
    def at_once(self) -> int:
        """How many responses are best scored by one call."""
        return self.options.judge_concurrency if self.options.text == "judge" else 1

    def name_for(self, example: Example) -> str | None:
        """What scores the answers to this question, as predictions name it; None: equality."""
        if example.answer_type != "text" or self.options.text == "exact":
            return None
        return f"judge {self.options.judge_model}" if self.options.text == "judge" else self.options.text

    def described(self) -> dict[str, Any]:
        """JSON-ready record of how free texts are scored, for a manifest."""
        how = {"text": self.options.text}
        if self.options.text != "exact":
            how["threshold"] = self.options.threshold
        return how | ({"judge": self.options.judge_model} if self.options.text == "judge" else {})

    def check(self) -> None:
        """Raises ConfigError for a judge that does not answer, or a file that cannot be used."""
        if self.options.text == "judge":
            self._judge.check()
        elif is_user_file(self.options.text):
            _ = self._function

    def __call__(self, texts: Sequence[str], examples: Sequence[Example]) -> list[float | str]:
        """What each response to a question with a free answer is worth, in [0, 1], or why that is not known."""
        if self.options.text == "judge":
            before = self._judge.failures.copy()
            verdicts = self._judge([Case(example, text) for example, text in zip(examples, texts, strict=True)])
            reasons = ", ".join((self._judge.failures - before) or ["it gave no mark"])
            marks = [None if verdict is None else verdict.answer for verdict in verdicts]
            return [f"the judge did not score it ({reasons})" if mark is None else mark for mark in marks]
        if self.options.text == "rouge":
            found = []
            for text, example in zip(texts, examples, strict=True):
                value = attempted(example, lambda of, text=text: mean_rouge(extract_answer(text).text, rouge_gold(of)))
                found.append(value.reason if isinstance(value, Rejected) else value)
            return found
        graded = self._function([Completion(text, len(text.split())) for text in texts], examples)
        values = [one.failure or (one.value if 0 <= one.value <= 1 else None) for one in graded]
        return [f"scoring.text={self.options.text} gave no value from 0 to 1" if v is None else v for v in values]

    @cached_property
    def _judge(self) -> EndpointJudge:
        return EndpointJudge(self.options.endpoint(), SCORING_INSTRUCTION)

    @cached_property
    def _function(self) -> Grader:
        return load_user_reward(self.options.text, {})
