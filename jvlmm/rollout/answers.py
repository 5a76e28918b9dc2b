"""Answers of an engine: what `Generator` does, with the programs of rollouts and on their mesh."""

import time
from collections.abc import Iterator
from collections.abc import Sequence as Sized
from typing import Any

import numpy as np

from jvlmm.data.batch import check_fits
from jvlmm.data.example import Example
from jvlmm.data.processor import Processor
from jvlmm.data.rejections import Rejected, attempted
from jvlmm.data.sequence import Sequence
from jvlmm.rollout.engine import Engine
from jvlmm.rollout.features import VisualFeatures
from jvlmm.rollout.generate import cut_at_stop
from jvlmm.rollout.generator import Response, facts_of
from jvlmm.rollout.queues import Asked
from jvlmm.rollout.sampling import SamplingOptions
from jvlmm.rollout.stopwatch import seconds_of_work


class Answers:
    """A policy, ready to be evaluated: one completion of every question, as `engine` samples."""

    def __init__(self, params: Any, processor: Processor, engine: Engine, features: VisualFeatures):
        self.params, self.processor = params, processor
        self._engine, self._features = engine, features

    @property
    def options(self) -> SamplingOptions:
        """How it samples; the seed is always 0."""
        return self._engine.sampling

    def stream(self, examples: Sized[Example]) -> Iterator[tuple[int, Response]]:
        """(index into `examples`, response) as they end; one that cannot be asked has an `error`."""
        failed: list[tuple[int, Response]] = []
        facts: dict[int, dict[str, Any]] = {}
        decode, stop = self._engine.tokenizer.decode, self.options.stop
        for number, _, rollout in self._engine.stream(self.params, self._asked(examples, facts, failed), seed=0):
            text = cut_at_stop(decode(rollout.tokens), stop)
            tokens = tuple(rollout.tokens.tolist())
            of = facts.pop(number)
            of["latency_s"] = seconds_of_work(of["latency_s"])
            yield number, Response(examples[number].id, text, tokens, rollout.finished, **of)
        yield from failed

    def _asked(self, examples: Sized[Example], facts: dict, failed: list) -> Iterator[Asked]:
        """The prompts, with their features: as many at a time as are read together."""
        waiting: list[Asked] = []
        for number, example in enumerate(examples):
            begun = time.perf_counter()
            prompt = attempted(example, self._prompt)
            if isinstance(prompt, Rejected):
                failed.append((number, Response(example.id, error=prompt.reason)))
                continue
            facts[number] = {**facts_of(prompt), "latency_s": begun}
            waiting.append(Asked(number, prompt, np.zeros(0)))
            if len(waiting) == self._engine.options.rows:
                yield from self._with_features(waiting)
                waiting = []
        yield from self._with_features(waiting)

    def _prompt(self, example: Example) -> Sequence:
        prompt = self.processor.prompt(example)
        check_fits(prompt, self._engine.batch)
        return prompt

    def _with_features(self, waiting: list[Asked]) -> Iterator[Asked]:
        features = self._features.of(self.params, [asked.sequence for asked in waiting])
        return (Asked(asked.number, asked.sequence, of) for asked, of in zip(waiting, features, strict=True))
