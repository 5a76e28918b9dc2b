"""A small tokenizer, and a decoder that draws instead of reading files."""

import dataclasses
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from jvlmm.data.bpe import train_tokenizer
from jvlmm.data.example import Example, Media
from jvlmm.data.processor import Processor, ProcessorOptions
from jvlmm.data.tokenizer import ChatTokenizer
from jvlmm.errors import VideoError
from jvlmm.models.presets import PRESETS
from jvlmm.video.budget import PixelOptions
from jvlmm.video.clip import Clip
from jvlmm.video.fitting import Measured

CORPUS = [
    "You are a helpful assistant.",
    "user",
    "assistant",
    "system",
    "Which shape moves left? A. red circle B. blue square",
    "<think>The <obj>red circle</obj><box>[12,30,41,60]</box> moves left at <t>1.5</t>s.</think><answer>A</answer>",
    "Answer with the letter. Answer yes or no. Think in <think></think>, then answer in <answer></answer>.",
] * 20

SMALL_PIXELS = PixelOptions(min_pixels=784, video_min_pixels=784, max_pixels=3136, video_max_pixels=3136)


class DrawingDecoder:
    """Clips from the name of the file: "8x56x84.mp4" has 8 frames of 56x84; "broken…" cannot be read."""

    def __init__(self):
        self.calls = []

    def video(self, path, frames, start, end, *, pixels):
        self.calls.append(path)
        name = Path(path).stem
        if name.startswith("broken"):
            raise VideoError(f"{path}: is damaged; fetch it again")
        t, h, w = (int(n) for n in name.split("-")[-1].split("x"))
        pixels = np.random.default_rng(zlib.crc32(name.encode())).integers(0, 256, (t, h, w, 3), np.uint8)
        return Clip(pixels, np.arange(t) / 2, np.arange(t), t / 2, 2.0)

    def measure_video(self, path, frames, start, end, most_decoded=None):
        name = Path(path).stem
        if name.startswith("broken"):
            raise VideoError(f"{path}: is damaged; fetch it again")
        t, h, w = (int(n) for n in name.split("-")[-1].split("x"))
        return Measured(h, w, tuple(np.arange(t) / 2))

    def measure_image(self, path):
        medium = self.measure_video(path, None, None, None)
        return Measured(medium.height, medium.width)

    def image(self, path, *, pixels):
        clip = self.video(path, None, None, None, pixels=pixels)
        return Clip(clip.frames[:1], np.zeros(1), np.zeros(1, np.int64), 0.0)


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(CORPUS, 420, folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer(tokenizer_dir) -> ChatTokenizer:
    return ChatTokenizer.from_pretrained(tokenizer_dir)


@pytest.fixture(scope="session")
def model_config(tokenizer):
    tiny = PRESETS["tiny"]
    return dataclasses.replace(
        tiny,
        text=dataclasses.replace(tiny.text, vocab_size=tokenizer.length),
        tokens=tokenizer.special_tokens,
    )


@pytest.fixture(scope="session")
def drawing(tokenizer, model_config):
    """What makes processors over drawn clips, and examples for them."""

    def processor(decoder=None, **options):
        options = ProcessorOptions(**{"pixels": SMALL_PIXELS, **options})
        return Processor(tokenizer, model_config, options, decoder or DrawingDecoder())

    def example(number=0, video="4x56x56", **fields):
        media = (Media("video", f"/clips/{video}.mp4"),) if video else ()
        fields = {
            "question": "Which shape moves left?",
            "answer": "A",
            "answer_type": "mcq",
            "options": ("red circle", "blue square"),
            "media": media,
            "response": "<think>red</think><answer>A</answer>",
            **fields,
        }
        return Example(id=f"e{number}", **fields)

    return SimpleNamespace(processor=processor, example=example, decoder=DrawingDecoder)
