"""What an evaluation must state to be repeated: protocol, prompt, sampling of frames and tokens, model."""

from dataclasses import asdict
from typing import Any

from jvlmm.rollout.answers import Answers
from jvlmm.rollout.generator import Generator
from jvlmm.sharding.fingerprint import fingerprint


def manifest_entry(generator: Generator | Answers, protocol: str) -> dict[str, Any]:
    """JSON-ready record of how `generator` asks and answers."""
    options = generator.processor.options
    return {
        "protocol": protocol,
        "prompt": options.style,
        "frames": asdict(options.frames),
        "pixels": asdict(options.pixels),
        "timestamps": options.timestamps,
        "text_after_media": options.text_after_media,
        "max_length": options.max_length,
        "fit": asdict(options.fit),
        "coordinates": options.coordinates or "of the model's family",
        "sampling": asdict(generator.options),
        "seed": generator.options.seed,
        "control": generator.control.describe() if isinstance(generator, Generator) else None,
        "model": fingerprint(generator.params),
    }
