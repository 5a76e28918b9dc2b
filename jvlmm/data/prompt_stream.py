"""Examples → prompts in a shuffled, endless, exactly resumable order, processed ahead in threads."""

from collections.abc import Callable
from collections.abc import Sequence as Sized
from dataclasses import dataclass
from typing import Any

import grain
import numpy as np

from jvlmm.data.batch import BatchOptions, check_fits
from jvlmm.data.coordinates import as_answered
from jvlmm.data.example import Example
from jvlmm.data.fingerprint import check_same_data, data_fingerprint
from jvlmm.data.loader import DEFAULT_PIPELINE, PipelineOptions
from jvlmm.data.processor import Processor
from jvlmm.data.rejections import Rejected, Rejections, attempted
from jvlmm.data.sequence import Sequence
from jvlmm.errors import DataError


@dataclass(frozen=True)
class Prompt:
    """A question, its boxes in the coordinates of the model's answers, and what the model reads of it."""

    example: Example
    sequence: Sequence
    response: np.ndarray | None = None  # int32 [C], tokens of the example's own response, where they are wanted


class PromptStream:
    """Iterator of (tuple of `number` Prompts, their ids). A context manager, which stops its threads.

    Every epoch has another order, the same for the same seed. An example that cannot be used (its media, its length,
    or `check`, which raises DataError; but also whatever else its preparation raises) is left out, counted once, and
    listed.
    """

    def __init__(
        self,
        examples: Sized[Example],
        processor: Processor,
        options: BatchOptions,
        number: int,
        seed: int,
        rejections: Rejections,
        check: Callable[[Example], None],
        pipeline: PipelineOptions = DEFAULT_PIPELINE,
        with_responses: bool = False,
        skips: Callable[[Example], bool] = lambda example: False,
    ):
        """Raises DataError for an empty dataset; so does iterating when a whole epoch holds no usable example.

        `with_responses`: the prompts of examples that have a response carry it. `skips` is asked in their order, of
        usable examples; those it names are passed over, but for a whole epoch of them.
        """
        if not len(examples):
            raise DataError("the dataset holds no examples; check its path and split")
        self.rejections = rejections
        self._number, self._epoch, self._skips = number, len(examples), skips
        self._read = self._refused = 0  # examples that have come, and how many in a row up to the last were refused
        self._fingerprint = {"examples": len(examples), "seed": seed, "files": data_fingerprint(examples)}

        def prepare(example: Example) -> Prompt:
            check(example)
            sequence = processor.prompt(example)
            check_fits(sequence, options)
            example = as_answered(example, sequence.coordinates, sequence.shown)
            wanted = with_responses and example.response is not None
            return Prompt(example, sequence, processor.response(example) if wanted else None)

        def attempt(example: Example) -> Prompt | Rejected:
            return attempted(example, prepare)

        stream = grain.MapDataset.source(examples)
        if pipeline.shuffle:
            stream = stream.shuffle(seed=seed)
        read = pipeline.read_options(processor.workers, number)
        self._items = iter(stream.repeat(None).map(attempt).to_iter_dataset(read))

    def __iter__(self) -> "PromptStream":
        return self

    def __next__(self) -> tuple[tuple[Prompt, ...], tuple[str, ...]]:
        prompts: list[Prompt] = []
        skipped = 0
        while len(prompts) < self._number:
            item = next(self._items)
            self._read += 1
            if isinstance(item, Prompt):
                self._refused = 0
                if skipped < self._epoch and self._skips(item.example):
                    skipped += 1
                else:
                    prompts.append(item)
                continue
            self.rejections.add(item)
            self._refused += 1
            if self._read % self._epoch == 0 and self._refused >= self._epoch:  # a whole epoch, not parts of two
                raise DataError(f"none of the {self._epoch} examples can be used; the last: {item.reason}")
        return tuple(prompts), tuple(prompt.example.id for prompt in prompts)

    def get_state(self) -> dict[str, Any]:
        """JSON-able position after the prompts last handed out."""
        counts = {"read": self._read, "refused": self._refused}
        return {"data": self._fingerprint, "items": self._items.get_state(), **counts}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue with exactly the prompts that followed `state`. DataError when it belongs to other data."""
        check_same_data(state["data"], self._fingerprint)
        self._items.set_state(state["items"])
        self._read, self._refused = state.get("read", 0), state.get("refused", 0)

    def close(self) -> None:
        """Stop the threads."""
        self._items.close()

    def __enter__(self) -> "PromptStream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
