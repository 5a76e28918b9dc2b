"""What `jvlmm generate` does once its arguments are known; imports JAX."""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from jvlmm.cli.options import names_set
from jvlmm.cli.shown import ShownOptions
from jvlmm.cli.verb import Result
from jvlmm.config import apply_overrides, naming_options
from jvlmm.data.example import Media
from jvlmm.data.processor_files import Processing, checkpoint_processing, difference, processor_options
from jvlmm.recipes.steering import off_message
from jvlmm.rollout.checkpoint import generate_answer
from jvlmm.rollout.control import PLAIN
from jvlmm.rollout.generation_config import checkpoint_sampling
from jvlmm.rollout.sampling import SamplingOptions
from jvlmm.test_time.vreason import VReasonOptions
from jvlmm.test_time.vreason_controller import VReason
from jvlmm.training.host_memory import keep_freed_memory_on_cpu
from jvlmm.video.fitting import FitOptions
from jvlmm.video.workers import Decoder


@dataclass(frozen=True)
class GenerateOptions(ShownOptions):
    """What `a.b=c` may set."""

    fit: FitOptions = field(default_factory=FitOptions)  # what becomes of media that are too large for max_length
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    max_length: int = 8192  # tokens of the prompt, visual tokens included
    vreason: VReasonOptions | None = None


def answer(
    model: str,
    media: Sequence[Media],
    question: str,
    think: bool | None,
    overrides: Sequence[str],
    vreason: VReasonOptions | None = None,
    adapter: str | None = None,
) -> Result:
    """The fields of `rollout.generator.Response` that say something of one answer; `think` None: as it was trained."""
    keep_freed_memory_on_cpu()
    options = apply_overrides(GenerateOptions(vreason=vreason), overrides)
    if think is None:
        think = checkpoint_processing(model, adapter).style == "think"
    with naming_options(options), Decoder(limits=options.limits) as decoder:
        style, asked = "think" if think else "describe", Processing.set_by(options)
        processor = processor_options(model, style, options.max_length, asked, adapter, fit=options.fit)
        told = difference(model, processor, adapter)
        if told:
            print(told, file=sys.stderr, flush=True)
        control = PLAIN if options.vreason is None else VReason(options.vreason)
        answered = generate_answer(
            model,
            media,
            question,
            decoder,
            processor=processor,
            sampling=checkpoint_sampling(options.sampling, model, names_set(overrides, "sampling")),
            control=control,
            adapter=adapter,
        )
        response = asdict(answered)
        for line in filter(None, (medium.reduced for medium in answered.media)):
            print(
                f"{line}: all that the file has, or that fits max_length={options.max_length} and the time of decoding",
                file=sys.stderr,
            )
    left_out = ["id", "error"]
    if response["control"] is None:
        left_out.append("control")
        if options.vreason is not None:
            print(off_message(1), file=sys.stderr)
    return {name: value for name, value in response.items() if name not in left_out}
