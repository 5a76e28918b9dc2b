"""The study stage of V-Reason: what its modes and Lite do to one checkpoint, over several seeds of sampling."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, median
from typing import Any, Literal, get_args

import numpy as np

from jvlmm.config import from_json, to_dict
from jvlmm.data.example import Example
from jvlmm.data.loader import PipelineOptions
from jvlmm.data.rejections import Rejected, Rejections
from jvlmm.errors import ConfigError
from jvlmm.evaluation.evaluate import Protocol, evaluate
from jvlmm.evaluation.metrics import mean_half_width
from jvlmm.json_text import json_text
from jvlmm.recipes.answering import generator_of
from jvlmm.recipes.recipe import Run
from jvlmm.recipes.sources import Source, VisionOptions, open_sources
from jvlmm.recipes.steering import SteeringLog, entropy_chart, read_entropies, with_video
from jvlmm.reporting.progress import Progress
from jvlmm.reporting.tables import text_table
from jvlmm.rollout.control import PLAIN, Controller
from jvlmm.rollout.generator import Generator, Response
from jvlmm.rollout.sampling import SamplingOptions
from jvlmm.sharding.mesh import MeshOptions
from jvlmm.sharding.rules import ShardingRules
from jvlmm.test_time.entropy_curves import curve_of
from jvlmm.test_time.vreason import LiteOptions, VReasonOptions
from jvlmm.test_time.vreason_controller import VReason

Method = Literal["base", "switch", "always_down", "always_up", "random", "lite"]


@dataclass(frozen=True)
class CompareSteering:
    """Every method answers the same questions with every seed of sampling; `NAME.json` and a table tell them apart.

    `base` is plain decoding, `lite` the switch with V-Reason Lite. Intervals are Student's t at 95 % over the seeds: of
    the draws, not of the choice of questions. A gain is that over `base` with the same seed. Latency is the median
    over questions of what `Prediction.latency_s` says, in untraced decoding. One more pass of each method, with the
    first seed over the first `traced` questions, goes to `traces/NAME.METHOD.jsonl` and is drawn as `NAME.svg`.
    """

    name: str = "steering"
    model: str = ""  # a Hugging Face folder, or stage:NAME
    adapter: str = ""  # a PEFT folder, or stage:NAME, merged into the model as it is read
    sources: tuple[Source, ...] = ()
    questions: int = 300  # the first so many that have a video
    traced: int = 64
    seeds: int = 5  # sampling.seed and those after it
    methods: tuple[Method, ...] = get_args(Method)
    protocol: Protocol = "think"
    sampling: SamplingOptions = field(default_factory=lambda: SamplingOptions(temperature=0.6))
    batch_size: int = 32
    length_buckets: tuple[int, ...] = (1024, 2048, 4096, 8192)  # tokens of a prompt; the last is the limit
    vision: VisionOptions = field(default_factory=lambda: VisionOptions(cache_bytes=2**30))  # files are read again
    pipeline: PipelineOptions = field(default_factory=PipelineOptions)
    mesh: MeshOptions | None = None  # of the devices that answer, all of this host; None: the first one
    rules: ShardingRules = field(default_factory=ShardingRules)
    vreason: VReasonOptions = field(default_factory=VReasonOptions)
    calibrated: str = ""  # stage:NAME or a file of options, which then take the place of `vreason`

    def __post_init__(self) -> None:
        if "base" not in self.methods or len(set(self.methods)) != len(self.methods):
            raise ConfigError(f"stage {self.name!r}: methods={self.methods} must have base among them, and each once")
        if self.seeds < 2 or self.questions < 1 or self.traced < 1:
            raise ConfigError(
                f"stage {self.name!r}: seeds={self.seeds}, questions={self.questions}, traced={self.traced}: need 2 "
                "seeds or more, for an interval, and a question or more"
            )
        if self.sampling.temperature == 0:
            raise ConfigError(f"stage {self.name!r}: sampling.temperature=0 makes all seeds alike; raise it")

    def run(self, run: Run) -> dict[str, Any]:
        unusable = Rejections(None, repeated=True)
        examples = with_video(open_sources(run, self.sources, unusable), self.questions)
        options, folder = self._options(run), run.resolve(self.model)
        runs: dict[Method, list[dict[str, float]]] = {method: [] for method in self.methods}
        total = (self.seeds + 1) * len(self.methods)
        with (
            generator_of(self, folder, adapter=run.adapter(self.adapter)) as generator,
            Progress(self.name, show=()) as progress,
        ):
            for number in range(self.seeds):  # methods take turns, so that a machine's drift meets all of them
                sampling = replace(generator.options, seed=self.sampling.seed + number)
                for method in self.methods:
                    steered = generator.steered(control_of(method, options), sampling)
                    runs[method].append(
                        self._answered(run, f"{method}.{sampling.seed}", steered, examples, unusable.rows)
                    )
                    progress(sum(map(len, runs.values())), total, {})
            for number, method in enumerate(self.methods, start=1):
                traced = generator.steered(control_of(method, options, trace=True))
                with SteeringLog(run.workdir / f"traces/{self.name}.{method}.jsonl") as log:
                    for response in traced.generate(examples[: self.traced]):
                        log(response)
                progress(self.seeds * len(self.methods) + number, total, {})
        return self._written(run, options, runs, len(examples) + len(unusable))

    def _options(self, run: Run) -> VReasonOptions:
        if not self.calibrated:
            return self.vreason
        return from_json(VReasonOptions, run.resolve(self.calibrated).read_text(encoding="utf-8"))

    def _answered(
        self, run: Run, name: str, generator: Generator, examples: Sequence[Example], unusable: Sequence[Rejected]
    ) -> dict[str, float]:
        """Figures of one method and seed. Rows that are no examples count as wrong, whether they had a video or not."""
        responses: list[Response] = []
        path = run.workdir / f"predictions/{self.name}.{name}.jsonl"
        figures = evaluate(
            generator,
            examples,
            path,
            self.protocol,
            unusable=unusable,
            on_response=responses.append,
            resume=True,
        )
        if figures["output_tokens"] is None:
            raise ConfigError(f"stage {self.name!r}: no question could be asked: {figures['failed'][0]['error']}")
        return {
            "accuracy": figures["accuracy"]["overall"],
            "output_tokens": figures["output_tokens"],
            "finished_rate": figures["finished_rate"],
            "latency_s": median(response.latency_s for response in responses if response.error is None),
        }

    def _written(
        self, run: Run, options: VReasonOptions, runs: dict[Method, list[dict[str, float]]], questions: int
    ) -> dict[str, Any]:
        """The table, printed and as a file, and the chart."""
        table = compared(runs)
        names = [method for method in self.methods if (run.workdir / f"traces/{self.name}.{method}.jsonl").is_file()]
        curves = {name: curve_of(read_entropies(run.workdir / f"traces/{self.name}.{name}.jsonl")) for name in names}
        (run.workdir / f"{self.name}.svg").write_text(entropy_chart(curves), encoding="utf-8")
        for name, curve in curves.items():
            table[name] |= {"entropy_peak": round(curve.peak, 4), "entropy_end": round(curve.end, 4)}
        found = {"vreason": to_dict(options), "seeds": self.seeds, "questions": questions, "methods": table}
        (run.workdir / f"{self.name}.json").write_text(json_text(found, indent=1), encoding="utf-8")
        columns = ("accuracy", "half_width", "gain", "gain_half_width", "output_tokens", "latency_s")
        rows = [[name, *(figures[column] for column in columns)] for name, figures in table.items()]
        header = [f"{self.seeds} seeds", "accuracy", "± 95 %", "gain", "± 95 %", "output tokens", "latency s"]
        print(text_table(header, rows), flush=True)
        return {"path": f"{self.name}.json", "chart": f"{self.name}.svg", **found}


def control_of(method: Method, options: VReasonOptions, trace: bool = False) -> Controller:
    """The controller of a method; `base` has one only where it is traced, which decodes the same tokens."""
    match method:
        case "base":
            return VReason(replace(options, mode="off", lite=None, trace=True)) if trace else PLAIN
        case "lite":
            return VReason(replace(options, mode="switch", lite=options.lite or LiteOptions(), trace=trace))
        case mode:
            return VReason(replace(options, mode=mode, lite=None, trace=trace))


def compared(runs: dict[Method, list[dict[str, float]]]) -> dict[str, dict[str, Any]]:
    """Means over the seeds of every method, given as figures of each seed in the same order."""
    base = np.array([figures["accuracy"] for figures in runs["base"]])
    table = {}
    for method, of_seeds in runs.items():
        accuracy = np.array([figures["accuracy"] for figures in of_seeds])
        figures = {
            "accuracy": accuracy.mean(),
            "half_width": mean_half_width(accuracy),
            "gain": (accuracy - base).mean(),
            "gain_half_width": mean_half_width(accuracy - base),
            **{name: fmean(f[name] for f in of_seeds) for name in ("output_tokens", "finished_rate", "latency_s")},
        }
        of_each = {"accuracy_of_seeds": accuracy.round(4).tolist()}
        table[method] = {**{name: round(float(value), 4) for name, value in figures.items()}, **of_each}
    return table
