"""The calibration stage: V-Reason's options from questions without answers, by the entropy of what is written."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

from jvlmm.config import to_json
from jvlmm.data.concatenation import Concatenation
from jvlmm.data.example import Example
from jvlmm.data.loader import PipelineOptions
from jvlmm.data.prompts import Style
from jvlmm.data.rejections import Rejections
from jvlmm.errors import ConfigError
from jvlmm.json_text import json_text
from jvlmm.recipes.answering import generator_of
from jvlmm.recipes.recipe import Run
from jvlmm.recipes.sources import Source, VisionOptions, open_sources
from jvlmm.recipes.steering import SteeringLog, with_video
from jvlmm.reporting.progress import Progress
from jvlmm.rollout.generator import Generator, Response
from jvlmm.rollout.sampling import SamplingOptions
from jvlmm.sharding.mesh import MeshOptions
from jvlmm.sharding.rules import ShardingRules
from jvlmm.test_time.entropy_curves import Curve, CurveTarget, curve_of
from jvlmm.test_time.vreason import VReasonOptions
from jvlmm.test_time.vreason_controller import VReason

_MOVED = 0.95  # of the plain curve's distance: above it a candidate changes next to nothing


@dataclass(frozen=True)
class Calibrate:
    """Every combination of `lr`, `beta` and `k` answers the questions; the one nearest to the target is kept.

    The options go to `NAME.json`, all candidates to `NAME.sweep.json`, traces to `traces/NAME.plain.jsonl` and
    `traces/NAME.jsonl`. Answers are taken off the examples before anything reads them. A candidate of which a step was
    skipped, because ΔV would not have been finite, is not chosen; of equals the cheaper and gentler one is.
    """

    name: str = "calibrate"
    model: str = ""  # a Hugging Face folder, or stage:NAME
    adapter: str = ""  # a PEFT folder, or stage:NAME, merged into the model as it is read
    sources: tuple[Source, ...] = ()
    questions: int = 64  # the first so many that have a video
    protocol: Style = "think"
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    batch_size: int = 32
    length_buckets: tuple[int, ...] = (1024, 2048, 4096, 8192)  # tokens of a prompt; the last is the limit
    vision: VisionOptions = field(default_factory=lambda: VisionOptions(cache_bytes=2**30))  # files are read again
    pipeline: PipelineOptions = field(default_factory=PipelineOptions)
    mesh: MeshOptions | None = None  # of the devices that answer, all of this host; None: the first one
    rules: ShardingRules = field(default_factory=ShardingRules)
    lr: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
    beta: tuple[float, ...] = (0.9, 0.95, 0.98)
    k: tuple[int, ...] = (1, 2)
    vreason: VReasonOptions = field(default_factory=VReasonOptions)  # everything else
    target: CurveTarget = field(default_factory=CurveTarget)

    def __post_init__(self) -> None:
        for name in ("lr", "beta", "k"):
            if not getattr(self, name):
                raise ConfigError(f"stage {self.name!r}: {name}=() leaves nothing to try; give a value or more")
        if self.questions < 1:
            raise ConfigError(f"stage {self.name!r}: questions={self.questions} must be at least 1")
        if self.vreason.mode == "off":
            raise ConfigError(f"stage {self.name!r}: vreason.mode=off steers nothing; choose another mode")
        self.candidates()

    def candidates(self) -> list[VReasonOptions]:
        """The cheapest and gentlest first."""
        grid = product(sorted(self.k, reverse=True), sorted(self.lr), self.beta)
        return [replace(self.vreason, trace=True, k=k, lr=lr, beta=beta) for k, lr, beta in grid]

    def run(self, run: Run) -> dict[str, Any]:
        unusable = Rejections(None, repeated=True)
        examples = with_video(unlabelled(open_sources(run, self.sources, unusable)), self.questions)
        folder, candidates = run.resolve(self.model), self.candidates()
        with (
            generator_of(self, folder, adapter=run.adapter(self.adapter)) as generator,
            Progress(self.name, show=("distance",)) as progress,
        ):
            off = replace(self.vreason, trace=True, mode="off", lite=None)
            responses, failed = _answers(generator, off, examples)
            plain, attention = curve_of(_entropies(responses)), _video_attention(responses)
            start = self.target.distance(plain, plain)
            _write_traces(run.workdir / f"traces/{self.name}.plain.jsonl", responses)
            best, best_responses, rows = None, [], []
            for number, options in enumerate(candidates, start=1):
                responses, _ = _answers(generator, options, examples)
                row = _row(options, responses, plain, self.target)
                rows.append(row)
                if not row["skipped_updates"] and (best is None or row["distance"] < best[0]):
                    best, best_responses = (row["distance"], options), responses
                progress(number, len(candidates), {"distance": row["distance"]})
        if best is None:
            raise ConfigError(
                f"stage {self.name!r}: every candidate had steps that were not finite; give lower values of lr"
            )
        _write_traces(run.workdir / f"traces/{self.name}.jsonl", best_responses)
        if best[0] > _MOVED * start:
            print(hardly_message(best[0], start, attention), file=sys.stderr, flush=True)
        left_out = [{"id": row.id, "error": row.message} for row in unusable.rows] + failed
        if left_out:
            print(f"{len(left_out)} rows could not be asked; {self.name}.sweep.json says why", file=sys.stderr)
        chosen = replace(best[1], trace=self.vreason.trace)
        return self._written(run.workdir, chosen, plain, attention, rows=rows, left_out=left_out)

    def _written(
        self,
        workdir: Path,
        chosen: VReasonOptions,
        plain: Curve,
        attention: float,
        rows: list[dict],
        left_out: list[dict],
    ) -> dict[str, Any]:
        (workdir / f"{self.name}.json").write_text(to_json(chosen), encoding="utf-8")
        distance = self.target.distance(plain, plain)
        base = {"peak": round(plain.peak, 4), "end": round(plain.end, 4), "distance": round(distance, 4)}
        base |= {"questions": plain.questions, "video_attention": round(attention, 4)}
        found = {"chosen": {name: getattr(chosen, name) for name in ("lr", "beta", "k")}, "plain": base, "sweep": rows}
        found["left_out"] = left_out  # no part of any curve
        (workdir / f"{self.name}.sweep.json").write_text(json_text(found, indent=1), encoding="utf-8")
        traces = [f"traces/{self.name}.plain.jsonl", f"traces/{self.name}.jsonl"]
        return {"path": f"{self.name}.json", "traces": traces, **found}


def hardly_message(distance: float, plain: float, attention: float) -> str:
    """One line for a user whose best candidate is hardly better than plain decoding."""
    return (
        f"V-Reason hardly moves the entropy of this model: distance {distance:.3f}, plain decoding {plain:.3f}; "
        f"{attention:.1%} of the last layer's attention, through which it acts, go to the video; try higher values of "
        "lr, and k=1"
    )


def unlabelled(examples: Sequence[Example]) -> Sequence[Example]:
    """The same questions without anything that tells their answers; earlier turns keep what was replied."""
    return Concatenation([examples], change=_without_answer)


def _without_answer(example: Example) -> Example:
    earlier = tuple(replace(turn, answer="", meta={}) for turn in example.earlier)
    return replace(example, answer="", response=None, learn=(), meta={}, earlier=earlier)


def _answers(
    generator: Generator, options: VReasonOptions, examples: Sequence[Example]
) -> tuple[list[Response], list[dict[str, str | None]]]:
    """(responses with traces, {"id", "error"} of the others). ConfigError where no question could be asked."""
    steered = generator.steered(VReason(options)).generate(examples)
    kept = [response for response in steered if response.error is None and response.control]
    if not kept:
        raise ConfigError(f"none of {len(steered)} questions could be asked; the first: {steered[0].error}")
    failed = [response for response in steered if response.error is not None]
    return kept, [{"id": response.id, "error": response.error} for response in failed]


def _entropies(responses: Sequence[Response]) -> list[list[float]]:
    return [response.control["entropy"] for response in responses]


def _video_attention(responses: Sequence[Response]) -> float:
    """The mean over all tokens but each answer's first, whose attention is not traced; 0 where there are none."""
    traced = [share for response in responses for share in response.control["video_attention"][1:]]
    return fmean(traced) if traced else 0.0


def _row(options: VReasonOptions, responses: Sequence[Response], plain: Curve, target: CurveTarget) -> Mapping:
    """What the sweep tells of one candidate."""
    curve = curve_of(_entropies(responses))
    figures = {
        "peak": curve.peak,
        "end": curve.end,
        "distance": target.distance(curve, plain),
        "output_tokens": sum(len(response.tokens) for response in responses) / len(responses),
        "finished_rate": sum(response.finished for response in responses) / len(responses),
    }
    skipped = sum(response.control["skipped_updates"] for response in responses)
    named = {name: getattr(options, name) for name in ("lr", "beta", "k")}
    return {**named, **{key: round(value, 4) for key, value in figures.items()}, "skipped_updates": skipped}


def _write_traces(path: Path, responses: Sequence[Response]) -> None:
    with SteeringLog(path) as log:
        for response in responses:
            log(response)
