"""From a checkpoint folder to answers in one call."""

from collections.abc import Sequence
from pathlib import Path

import jax
from jax.sharding import Mesh

from jvlmm.data.batch import BatchOptions
from jvlmm.data.example import Example, Media
from jvlmm.data.loader import DEFAULT_PIPELINE, PipelineOptions
from jvlmm.data.processor import Decoder, Processor, ProcessorOptions
from jvlmm.data.processor_files import processor_options
from jvlmm.data.tokenizer import ChatTokenizer
from jvlmm.errors import DataError
from jvlmm.models.execution import for_inference, on_mesh
from jvlmm.models.huggingface import load_config, load_params
from jvlmm.models.qwen2_5_vl import params_on_mesh
from jvlmm.rollout.control import PLAIN, Controller
from jvlmm.rollout.generation_config import checkpoint_sampling
from jvlmm.rollout.generator import Generator, Response
from jvlmm.rollout.sampling import SamplingOptions
from jvlmm.sharding.rules import ShardingRules

GREEDY = SamplingOptions()


def load_generator(
    model_dir: str | Path,
    decoder: Decoder,
    processor: ProcessorOptions,
    sampling: SamplingOptions,
    batch: BatchOptions,
    pipeline: PipelineOptions = DEFAULT_PIPELINE,
    control: Controller = PLAIN,
    mesh: Mesh | None = None,
    rules: ShardingRules | None = None,
    adapter: str | Path | None = None,
) -> Generator:
    """A generator from a Hugging Face folder: config.json, safetensors and tokenizer files.

    `adapter`: a PEFT folder, which is merged into the model as it is read.
    With a `mesh` of several devices `rules` say what they share; see `Generator`.
    Raises CheckpointError, DataError or ConfigError naming what is missing or does not fit.
    """
    config = for_inference(load_config(model_dir), jax.default_backend())
    if mesh is not None:
        config = on_mesh(config, mesh, rules)
    tokenizer = ChatTokenizer.from_pretrained(model_dir)
    sampling = checkpoint_sampling(sampling, model_dir)
    ready = Processor(tokenizer, config, processor, decoder)
    shardings = None
    if config.rules is not None:
        _, shardings = params_on_mesh(config, mesh, rules)
    params = load_params(model_dir, config, shardings, adapter)
    return Generator(params, ready, sampling, batch, pipeline, control, mesh)


def generate_answer(
    model_dir: str | Path,
    media: Sequence[Media],
    question: str,
    decoder: Decoder,
    processor: ProcessorOptions | None = None,
    sampling: SamplingOptions = GREEDY,
    control: Controller = PLAIN,
    adapter: str | Path | None = None,
) -> Response:
    """Ask one question about some files; by default in its own words, the media shown as the checkpoint asks.

    Raises DataError with the reason where it cannot be asked, and what `load_generator` raises.
    """
    if processor is None:
        processor = processor_options(model_dir, "describe", ProcessorOptions.max_length, adapter=adapter)
    buckets = tuple(2**power for power in range(8, processor.max_length.bit_length())) + (processor.max_length,)
    batch = BatchOptions(batch_size=1, length_buckets=tuple(sorted(set(buckets))))
    generator = load_generator(model_dir, decoder, processor, sampling, batch, control=control, adapter=adapter)
    (response,) = generator.generate([Example("question", question, "", "text", tuple(media))])
    if response.error is not None:
        raise DataError(response.error.removeprefix("question: "))
    return response
