"""Examples in, responses out: batched by bucket, failures as results, in the order asked."""

import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jax.sharding import Mesh

from jvlmm.data.batch import BatchOptions
from jvlmm.data.coordinates import Coordinates, Shown
from jvlmm.data.example import Example
from jvlmm.data.loader import DEFAULT_PIPELINE, PipelineOptions, eval_batches
from jvlmm.data.processor import Processor
from jvlmm.data.rejections import Rejections
from jvlmm.data.sequence import Sequence as Prompt
from jvlmm.rollout.control import PLAIN, Controller
from jvlmm.rollout.generate import cut_at_stop, generate
from jvlmm.rollout.sampling import SamplingOptions, banned_tokens, row_keys
from jvlmm.rollout.stopwatch import seconds_of_work
from jvlmm.sharding.batches import Devices


@dataclass(frozen=True)
class Response:
    """What the model wrote to one example, or why it was not asked."""

    id: str
    text: str = ""  # without special tokens, up to the stop string
    tokens: tuple[int, ...] = ()  # as drawn, the end-of-sequence token included
    finished: bool = False  # False where `max_tokens` cut the text
    frames: tuple[tuple[int, ...], ...] = ()  # indices of the frames used, per medium in prompt order
    visual_tokens: int = 0
    text_tokens: int = 0  # of the prompt, media apart
    latency_s: float = 0.0  # preparing the example, and generating the batch it was in; without compilation
    error: str | None = None
    control: dict[str, Any] | None = None  # what a decode-time controller reports of it; lists have an entry a token
    media: tuple[Shown, ...] = ()  # the media as the model saw them, in prompt order
    coordinates: Coordinates = "shown"  # of the boxes in `text`


@dataclass(frozen=True)
class _Row:
    """One example under its number, which is unique where ids are not."""

    number: int
    example: Example

    @property
    def id(self) -> str:
        return self.example.id

    @property
    def origin(self) -> str:
        return str(self.number)


@dataclass(frozen=True)
class _Rows:
    """Random access to the examples as rows."""

    examples: Sequence[Example]

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, number: int) -> _Row:
        return _Row(number, self.examples[number])


@dataclass
class _Preparation:
    """Makes prompts, and keeps what is worth telling of each until its response is there."""

    processor: Processor
    facts: dict[int, dict] = field(default_factory=dict)

    def __call__(self, row: _Row) -> Prompt:
        begin = time.perf_counter()
        prompt = self.processor.prompt(row.example)
        self.facts[row.number] = {**facts_of(prompt), "latency_s": time.perf_counter() - begin}
        return prompt


def facts_of(prompt: Prompt) -> dict[str, Any]:
    """The fields of a Response that its prompt tells."""
    visual = int((prompt.visual_index >= 0).sum())
    return {
        "frames": tuple(medium.frames for medium in prompt.shown),
        "visual_tokens": visual,
        "text_tokens": prompt.length - visual,
        "media": prompt.shown,
        "coordinates": prompt.coordinates,
    }


class Generator:
    """A model with its processor, ready to answer.

    An example's draw depends on `options.seed` and its id alone, not on the examples it is batched with.
    """

    def __init__(
        self,
        params,
        processor: Processor,
        options: SamplingOptions,
        batch: BatchOptions,
        pipeline: PipelineOptions = DEFAULT_PIPELINE,
        control: Controller = PLAIN,
        mesh: Mesh | None = None,
    ):
        """`params` of a model of shape `processor.config`; `batch` gives rows and buckets, `pipeline` the threads.

        `control` steers decoding. With a `mesh` of several devices the config's rules say what they share, and the
        batch comes in as many shards as they split it.
        """
        self.params = params
        self.config = processor.config
        self.processor = processor
        self.options = options
        self.batch = batch
        self.pipeline = pipeline
        self.control = control
        self.mesh = mesh
        self._devices = Devices.of(mesh, self.config.rules)
        self._banned = self._devices.put_whole(banned_tokens(self.config, processor.tokenizer.length))

    def steered(self, control: Controller, options: SamplingOptions | None = None) -> "Generator":
        """The same model and processor under another controller, and other sampling where it is given."""
        options = options or self.options
        return Generator(self.params, self.processor, options, self.batch, self.pipeline, control, self.mesh)

    def generate(self, examples: Sequence[Example]) -> list[Response]:
        """A response for every example, in their order; one that cannot be asked has an `error`."""
        responses = dict(self.stream(examples))
        return [responses[number] for number in range(len(examples))]

    def stream(self, examples: Sequence[Example]) -> Iterator[tuple[int, Response]]:
        """(index into `examples`, response) as they come: by batch, those that failed in between."""
        prepare, rejections = _Preparation(self.processor), Rejections(None)
        arguments = (prepare, self.batch, self.config, rejections, self.pipeline, self.processor.workers)
        told: list[int] = []

        def failed() -> Iterator[tuple[int, Response]]:
            for rejected in rejections.rows[len(told) :]:
                told.append(int(rejected.origin))
                yield told[-1], Response(rejected.id, error=rejected.reason)

        for batch, numbers in eval_batches(_Rows(examples), *arguments):
            yield from self._answer(batch, numbers, [examples[number].id for number in numbers], prepare)
            yield from failed()
        yield from failed()

    def _answer(self, batch, numbers, ids, prepare: _Preparation) -> Iterator[tuple[int, Response]]:
        begin = time.perf_counter()
        row_seeds = np.zeros(len(batch.tokens), np.uint32)
        row_seeds[: len(ids)] = [zlib.crc32(name.encode("utf-8", "surrogatepass")) for name in ids]
        keys = row_keys(self.options.seed, row_seeds)
        decode = self.processor.tokenizer.decode
        with self._devices.in_use():
            given = self.params, self.config, self._devices.put(batch), self.options, keys, self._banned
            result = generate(*given, decode, self.control)
        seconds = seconds_of_work(begin)
        for row, (number, name) in enumerate(zip(numbers, ids, strict=True)):
            tokens = result.tokens[row, : result.lengths[row]]
            facts = prepare.facts.pop(number)
            facts["latency_s"] += seconds
            text = cut_at_stop(decode(tokens), self.options.stop)
            report = {key: _of_row(array[row], len(tokens)) for key, array in result.control.items()}
            done = bool(result.finished[row])
            yield number, Response(name, text, tuple(tokens.tolist()), done, **facts, control=report or None)


def _of_row(array: np.ndarray, length: int) -> Any:
    """A number, or a list of one a token."""
    return array[:length].tolist() if array.ndim else array.item()
