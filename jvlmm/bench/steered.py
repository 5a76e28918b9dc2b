"""Decoding with V-Reason and without: the same prompts, programs of the same loop."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jvlmm.bench.own import device_peak, make_batch
from jvlmm.bench.process import BenchError
from jvlmm.bench.workload import SIZES, Workload, make_arrays
from jvlmm.models.config import ModelConfig
from jvlmm.models.execution import for_inference
from jvlmm.models.huggingface import load_config, load_params
from jvlmm.rollout.control import PLAIN, Controller
from jvlmm.rollout.generate import DecodeState, decode_until, start
from jvlmm.rollout.sampling import SamplingOptions, banned_tokens, row_keys
from jvlmm.test_time.vreason import LiteOptions, VReasonOptions
from jvlmm.test_time.vreason_controller import VReason

FRAME_TOKENS = 64  # of two frames of 224 x 224 pixels
CONTROLLERS: dict[str, Controller] = {
    "plain": PLAIN,
    "k1": VReason(VReasonOptions(k=1)),
    "k2": VReason(VReasonOptions(k=2)),
    "lite": VReason(VReasonOptions(k=2, lite=LiteOptions())),
}


@dataclass(frozen=True)
class SteeredWorkload:
    """Rows of one video and a question each, and the tokens written to every one."""

    video_tokens: int = 1024
    batch: int = 8
    text_tokens: int = 64
    new_tokens: int = 32

    def check(self) -> None:
        """BenchError for sizes that cannot be made."""
        if self.video_tokens < FRAME_TOKENS or self.video_tokens % FRAME_TOKENS:
            raise BenchError(
                f"--video-tokens {self.video_tokens} cannot be made of frames of {FRAME_TOKENS} tokens; give a multiple"
            )
        for name, least in (("batch", 1), ("new_tokens", 2)):
            if getattr(self, name) < least:
                raise BenchError(
                    f"--{name.replace('_', '-')} {getattr(self, name)} is too small; give at least {least}"
                )

    def of_prompts(self) -> Workload:
        frames = 2 * self.video_tokens // FRAME_TOKENS
        return Workload(frames, 224, 224, (self.text_tokens,) * self.batch, answer_tokens=0, new_tokens=self.new_tokens)

    def save(self, folder: Path) -> None:
        (folder / SIZES).write_text(json.dumps(asdict(self)))

    @staticmethod
    def load(folder: Path) -> "SteeredWorkload":
        return SteeredWorkload(**json.loads((folder / SIZES).read_text()))


def tail_share(config: ModelConfig) -> float:
    """The share of the weights read for a token that an update reads again: last o_proj and MLP, and the head."""
    text = config.text
    heads, kv = text.num_heads * text.head_dim, 2 * text.num_kv_heads * text.head_dim
    output, mlp = heads * text.hidden_size, 3 * text.hidden_size * text.intermediate_size
    head = text.vocab_size * text.hidden_size
    layer = (heads + kv) * text.hidden_size + output + mlp
    return (output + mlp + head) / (text.num_layers * layer + head)


class Steered:
    """Prompts and a controller of CONTROLLERS; see `worker.Side`."""

    def __init__(self, folder: Path, name: str):
        workload = SteeredWorkload.load(folder)
        self.config = for_inference(load_config(folder), jax.default_backend())
        self.params = load_params(folder, self.config)
        self.batch = make_batch(make_arrays(workload.of_prompts(), self.config), self.config)
        self.sampling = SamplingOptions(max_tokens=workload.new_tokens)
        self.banned = banned_tokens(self.config, self.config.text.vocab_size, extra=self.config.tokens.eos)
        self.keys = row_keys(0, range(workload.batch))
        self.control = CONTROLLERS[name].fitted(self.batch, self.config)
        self.started: DecodeState | None = None
        self.copy: DecodeState | None = None

    def prefill(self) -> None:
        """Tower, prompts, the first token, and what the controller begins with."""
        arguments = self.params, self.config, self.batch, self.sampling, self.keys, self.banned
        self.started = jax.block_until_ready(start(*arguments, self.control))

    def copied(self) -> None:
        """What the prefill left, once more, for `tokens` uses it up."""
        if self.started is None:
            self.prefill()
        self.copy = jax.block_until_ready(jax.tree.map(jnp.copy, self.started))

    def tokens(self) -> list[int]:
        """All further tokens."""
        until = np.int32(self.sampling.max_tokens)
        arguments = self.params, self.config, self.copy, self.sampling, self.banned, until
        return np.asarray(decode_until(*arguments, self.control).lengths).tolist()

    def facts(self) -> dict[str, Any]:
        """The device, and the bytes of the cache."""
        device, cache = jax.devices()[0], self.started.cache
        stores = sum(leaf.nbytes for leaf in jax.tree.leaves((cache.keys, cache.values)))
        return {"platform": device.platform, "device_kind": device.device_kind, "cache_bytes": stores}

    def device_peak(self) -> int | None:
        return device_peak()
