"""The evaluation stage: a model folder and questions in, figures and predictions out."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import numpy as np

from jvlmm.data.batch import abstract_batch
from jvlmm.data.loader import PipelineOptions
from jvlmm.data.rejections import Rejections
from jvlmm.evaluation.evaluate import Protocol, evaluate
from jvlmm.judges.free_text import Scorer, ScoringOptions
from jvlmm.models.config import ModelConfig
from jvlmm.models.execution import for_inference
from jvlmm.recipes.answering import batch_of, generator_of, mesh_of
from jvlmm.recipes.recipe import Program, Run
from jvlmm.recipes.sources import Source, VisionOptions, open_sources
from jvlmm.recipes.steering import SteeringLog, off_message
from jvlmm.reporting.progress import Progress
from jvlmm.rollout.ahead import AbstractGeneration
from jvlmm.rollout.control import PLAIN, Controller
from jvlmm.rollout.sampling import SamplingOptions
from jvlmm.sharding.batches import row_shards
from jvlmm.sharding.mesh import MeshOptions
from jvlmm.sharding.rules import ShardingRules
from jvlmm.test_time.vreason import VReasonOptions
from jvlmm.test_time.vreason_controller import VReason
from jvlmm.training.flops import decode_flops, prefill_flops


@dataclass(frozen=True)
class Evaluate:
    """Ask a model every question of some sources and score its answers."""

    name: str = "evaluate"
    model: str = ""  # a Hugging Face folder, or stage:NAME
    adapter: str = ""  # a PEFT folder, or stage:NAME, merged into the model as it is read
    sources: tuple[Source, ...] = ()
    protocol: Protocol = "think"
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    batch_size: int = 32  # questions at once, where there are as many
    length_buckets: tuple[int, ...] = (1024, 2048, 4096, 8192)  # tokens of a prompt; the last is the limit
    vision: VisionOptions = field(default_factory=VisionOptions)
    pipeline: PipelineOptions = field(default_factory=PipelineOptions)
    mesh: MeshOptions | None = None  # of the devices that answer, all of this host; None: the first one
    rules: ShardingRules = field(default_factory=ShardingRules)
    scoring: ScoringOptions = field(default_factory=ScoringOptions)  # of free texts
    vreason: VReasonOptions | None = None  # steers the answers while they are written

    def run(self, run: Run) -> dict[str, Any]:
        folder = run.resolve(self.model)
        predictions = f"predictions/{self.name}.jsonl"
        rejections = Rejections(None, repeated=True)
        examples = open_sources(run, self.sources, rejections)
        steering = SteeringLog(run.workdir / f"traces/{self.name}.jsonl")
        sized = replace(self, batch_size=self._batch_size(len(examples)))
        answering = generator_of(sized, folder, self._control(), run.adapter(self.adapter))
        progress = Progress(self.name, show=(), unit="question")
        with answering as generator, progress, steering:
            figures = evaluate(
                generator,
                examples,
                run.workdir / predictions,
                self.protocol,
                scorer=Scorer(self.scoring),
                unusable=rejections.rows,
                on_progress=lambda done, total: progress(done, total, {}),
                on_response=None if self.vreason is None else steering,
                resume=True,
            )
        if self.vreason is not None:
            figures["vreason"] = steering.figures()
            if figures["vreason"]["without_video"]:
                print(off_message(figures["vreason"]["without_video"]), file=sys.stderr, flush=True)
        return {"path": predictions, "evaluation": figures}

    def _batch_size(self, questions: int) -> int:
        """Rows of a batch: no more than there are questions, in whole rows a device."""
        shards, _ = row_shards(mesh_of(self, jax.local_devices()), self.rules)
        return min(self.batch_size, max(1, -(-questions // shards)) * shards)

    def _control(self) -> Controller:
        return PLAIN if self.vreason is None else VReason(self.vreason)

    def programs(
        self, config: ModelConfig, devices: Sequence[jax.Device] | int, platform: str, media: bool = True
    ) -> list[Program]:
        """Prefill of the largest batch and the loop that decodes it.

        The loop meets its arguments, weights and cache, once a token.
        """
        config, mesh = for_inference(config, platform), mesh_of(self, devices)
        frame = self.vision.frame_pixels // config.vision.patch_size**2 if media else None
        batch = abstract_batch(batch_of(self, mesh), config, frame)
        control = PLAIN
        if media and self.vreason is not None:
            visual = self.vision.patch_buckets[-1] // config.vision.spatial_merge_size**2 // self.batch_size
            control = VReason(self.vreason).planned(self.length_buckets[-1], min(visual, self.length_buckets[-1]))
        sampling = self.sampling
        if sampling.from_checkpoint:  # no file is read for a plan: one that samples and penalises needs the most
            temperature, penalty = sampling.temperature or 1.0, max(sampling.repetition_penalty, 1.05)
            sampling = replace(sampling, from_checkpoint=False, temperature=temperature, repetition_penalty=penalty)
        generation = AbstractGeneration(config, batch, sampling, mesh, self.rules, frame or 0, control)
        lengths = np.full(self.batch_size, self.length_buckets[-1])
        further = self.sampling.max_tokens - 1
        patches = self.vision.patch_buckets[-1] if media else 0
        prefill = Program(
            f"{self.name}.prefill",
            generation.trace_prefill,
            generation.estimate_prefill,
            devices=mesh.size,
            samples=self.batch_size,
            model_flops=prefill_flops(config, lengths, patches, frame or 0),
            passes=1,
        )
        decode = Program(
            f"{self.name}.decode",
            generation.trace_decode,
            generation.estimate_decode,
            devices=mesh.size,
            samples=self.batch_size,
            model_flops=decode_flops(config, lengths, further),
            passes=further,
        )
        return [prefill, decode] if further else [prefill]
