"""The policy as its own judge: it sees the frames, the true answer and its response, and says what is wrong."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from jvlmm.data.example import Example
from jvlmm.errors import ConfigError
from jvlmm.judges.verdict import Case, Verdict
from jvlmm.judges.wording import INSTRUCTION, Unreadable, facts, parse_verdict
from jvlmm.rollout.answers import Answers


@dataclass(frozen=True)
class Own:
    """The policy judges, greedily."""

    max_tokens: int = 256  # of a verdict
    prompt_tokens: int = 2048  # that a case may have besides the prompt it answers

    def __post_init__(self) -> None:
        for name in ("max_tokens", "prompt_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"judge.{name}={getattr(self, name)} must be at least 1")


@dataclass
class OwnJudge:
    """`judge(cases) -> [Verdict | None]`; `failures` counts those that got none by reason.

    `answers` ask a question as it stands, of the style "describe"; whose parameters they have is the caller's affair.
    """

    answers: Answers
    failures: Counter = field(default_factory=Counter)

    def __call__(self, cases: Sequence[Case]) -> list[Verdict | None]:
        found: list[Verdict | None] = [None] * len(cases)
        for number, response in self.answers.stream([_question(case, n) for n, case in enumerate(cases)]):
            try:
                if response.error:
                    raise Unreadable(response.error)
                found[number] = parse_verdict(response.text)
            except Unreadable as error:
                self.failures[str(error)] += 1
        return found


def _question(case: Case, number: int) -> Example:
    """With the media of the case's question."""
    name, media = f"{case.example.id}/judged/{number}", case.example.media
    question, coordinates = f"{INSTRUCTION}\n{facts(case)}", case.example.coordinates
    return Example(name, question, "", "text", media, coordinates=coordinates)
