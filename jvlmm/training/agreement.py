"""What several processes must have alike before each of them takes the same step."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from jvlmm.data.example import Example
from jvlmm.data.prompt_stream import Prompt, PromptStream
from jvlmm.errors import DataError
from jvlmm.judges.verdict import Case, Judge, Verdict
from jvlmm.rewards.completion import Completion
from jvlmm.rewards.rewarder import Rewarder
from jvlmm.rewards.table import RewardTable
from jvlmm.sharding.exchange import Exchange
from jvlmm.sharding.hosts import process_index


@dataclass(frozen=True)
class AgreedPrompts:
    """The stream of prompts, which every process reads whole; DataError where one of them could not read the same."""

    stream: PromptStream
    exchange: Exchange

    def __next__(self) -> tuple[tuple[Prompt, ...], tuple[str, ...]]:
        prompts, ids = next(self.stream)
        for process, others in enumerate(self.exchange.round(ids)):
            different = next((pair for pair in zip(ids, others, strict=True) if pair[0] != pair[1]), None)
            if different is not None:
                raise DataError(
                    f"process {process} reads {different[1]!r} where process {process_index()} reads {different[0]!r}: "
                    "one of them could not read an example; let all processes see the same files"
                )
        return prompts, ids

    def get_state(self) -> dict[str, Any]:
        """As that of the stream."""
        return self.stream.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        """As that of the stream."""
        self.stream.set_state(state)


@dataclass(frozen=True)
class AgreedRewards:
    """The rewarder of process 0 for all: users' functions may ask others, who need not answer all alike."""

    rewarder: Rewarder
    exchange: Exchange

    def __call__(self, completions: list[Completion], examples: list[Example]) -> RewardTable:
        """As the rewarder."""
        table = self.rewarder(completions, examples).to_json() if process_index() == 0 else None
        return RewardTable.from_json(self.exchange.round(table)[0])


@dataclass(frozen=True)
class AgreedJudge:
    """The judge of process 0 for all: one behind an endpoint need not say the same twice."""

    judge: Judge
    exchange: Exchange

    def __call__(self, cases: Sequence[Case]) -> list[Verdict | None]:
        """As the judge."""
        found = None
        if process_index() == 0:
            found = [None if verdict is None else asdict(verdict) for verdict in self.judge(cases)]
        return [None if verdict is None else Verdict(**verdict) for verdict in self.exchange.round(found)[0]]
