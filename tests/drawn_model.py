"""Fixtures: a small random model with a tokenizer of its own, and a decoder that draws instead of reading files."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from jvlmm.data.bpe import train_tokenizer
from jvlmm.data.processor import Processor, ProcessorOptions
from jvlmm.data.tokenizer import ChatTokenizer
from jvlmm.errors import VideoError
from jvlmm.models.config import ModelConfig, SpecialTokens, TextConfig, VisionConfig
from jvlmm.models.qwen2_5_vl import abstract_params
from jvlmm.video.budget import PixelOptions
from jvlmm.video.clip import Clip
from jvlmm.video.fitting import Measured
from jvlmm.video.sampling import FrameOptions


class DrawnFiles:
    """Decodes `N.mp4` and `N.png` to noise of seed N; every other name is unreadable."""

    def video(self, path, frames, start=None, end=None, pixels=None):
        return self._clip(path, frames.num_frames)

    def image(self, path, pixels=None):
        return self._clip(path, 1)

    def measure_video(self, path, frames, start=None, end=None, most_decoded=None):
        return Measured(56, 56, tuple(self._clip(path, frames.num_frames).times))

    def measure_image(self, path):
        self._clip(path, 1)
        return Measured(56, 56)

    def _clip(self, path, count):
        stem = path.rpartition(".")[0]
        if stem == "bug":
            raise RuntimeError("a surprise")
        if not stem.isdigit():
            raise VideoError(f"{path}: no such file; check the path")
        pixels = np.random.default_rng(int(stem)).integers(0, 256, (count, 56, 56, 3)).astype(np.uint8)
        return Clip(pixels, np.arange(count) / 2.0, np.arange(count) * 15, count / 2, 2.0)


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory) -> ChatTokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(["What colour is the circle? It is red. <think>ok</think><answer>A</answer>"] * 3, 320, folder)
    return ChatTokenizer.from_pretrained(folder)


@pytest.fixture(scope="session")
def config(tokenizer) -> ModelConfig:
    """Twenty rows of the head have no token, as in the released checkpoints."""
    return ModelConfig(
        vision=VisionConfig(
            depth=2,
            hidden_size=32,
            num_heads=2,
            intermediate_size=48,
            out_hidden_size=48,
            window_size=56,
            fullatt_block_indexes=(1,),
        ),
        text=TextConfig(
            vocab_size=tokenizer.length + 20,
            hidden_size=48,
            intermediate_size=64,
            num_layers=2,
            num_heads=4,
            num_kv_heads=2,
            rope_theta=1e4,
            mrope_section=(2, 2, 2),
            tie_word_embeddings=True,
        ),
        tokens=SpecialTokens(
            image=tokenizer.image_id,
            video=tokenizer.video_id,
            vision_start=tokenizer.vision_start_id,
            vision_end=tokenizer.vision_end_id,
            eos=(tokenizer.eos_id, tokenizer.pad_id),
            pad=tokenizer.pad_id,
        ),
    )


@pytest.fixture(scope="session")
def params(config):
    """Weights ten times larger than at the start of training: greedy tokens differ from step to step."""
    random = np.random.default_rng(3)

    def draw(path, leaf):
        if path[-1].key == "scale":
            return np.ones(leaf.shape, leaf.dtype)
        return random.normal(0, 0.2, leaf.shape).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, abstract_params(config)[0])


@pytest.fixture(scope="session")
def processor(tokenizer, config) -> Processor:
    options = ProcessorOptions(
        frames=FrameOptions(num_frames=4), pixels=PixelOptions(784, 6400, 784, 6400), max_length=200
    )
    return Processor(tokenizer, config, options, DrawnFiles())


@pytest.fixture(scope="session")
def without_eos(config) -> ModelConfig:
    """A model that ends on nothing, for tests of what is drawn."""
    return replace(config, tokens=replace(config.tokens, eos=(config.text.vocab_size - 1,)))
