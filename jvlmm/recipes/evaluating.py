"""The evaluation stage: a model folder and questions in, figures and predictions out."""

from dataclasses import dataclass, field
from typing import Any

from jvlmm.data.loader import PipelineOptions
from jvlmm.data.rejections import Rejections
from jvlmm.evaluation.evaluate import Protocol, evaluate
from jvlmm.recipes.recipe import Run
from jvlmm.recipes.sources import Source, VisionOptions, open_sources
from jvlmm.reporting.progress import Progress
from jvlmm.rollout.checkpoint import load_generator
from jvlmm.rollout.sampling import SamplingOptions


@dataclass(frozen=True)
class Evaluate:
    """Ask a model every question of some sources and score its answers."""

    name: str = "evaluate"
    model: str = ""  # a Hugging Face folder, or stage:NAME
    sources: tuple[Source, ...] = ()
    protocol: Protocol = "think"
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    batch_size: int = 32
    length_buckets: tuple[int, ...] = (1024, 2048, 4096, 8192)  # tokens of a prompt; the last is the limit
    vision: VisionOptions = field(default_factory=VisionOptions)
    pipeline: PipelineOptions = field(default_factory=PipelineOptions)

    def run(self, run: Run) -> dict[str, Any]:
        folder = run.resolve(self.model)
        predictions = f"predictions/{self.name}.jsonl"
        rejections = Rejections(None)
        examples = open_sources(run, self.sources, rejections)
        with self.vision.decoder() as decoder, Progress(self.name, show=()) as progress:
            generator = load_generator(
                folder,
                decoder,
                self.vision.processor(self.protocol, self.length_buckets[-1], folder),
                self.sampling,
                self.vision.batch(self.batch_size, self.length_buckets),
                self.pipeline,
            )
            figures = evaluate(
                generator,
                examples,
                run.workdir / predictions,
                self.protocol,
                unusable=rejections.reasons,
                on_progress=lambda done, total: progress(done, total, {}),
            )
        return {"path": predictions, "evaluation": figures}
