"""This project's side: the programs that recipes and generation run."""

from pathlib import Path

import jax
import numpy as np

from jvlmm.bench.workload import Arrays, Workload
from jvlmm.data.batch import Batch, BatchOptions, collate
from jvlmm.data.positions import next_position
from jvlmm.data.sequence import Sequence
from jvlmm.models.config import ModelConfig
from jvlmm.models.execution import for_training
from jvlmm.models.huggingface import load_config, load_params
from jvlmm.models.qwen2_5_vl import encode_vision
from jvlmm.rollout.generate import decode_until, start
from jvlmm.rollout.sampling import SamplingOptions, banned_tokens, row_keys
from jvlmm.training.flops import model_flops
from jvlmm.training.optimizer import OptimizerOptions, make_optimizer
from jvlmm.training.sft import make_sft_loss
from jvlmm.training.state import create_state
from jvlmm.training.step import make_train_step
from jvlmm.video.clip import Patches


class Own:
    """The model in this process; see `worker.Side`, and `model.MEASURES` for what its methods do."""

    def __init__(self, folder: Path):
        workload = Workload.load(folder)
        self.config = for_training(load_config(folder), jax.default_backend())
        self.batch = make_batch(Arrays.load(folder), self.config)
        self.sampling = SamplingOptions(max_tokens=workload.new_tokens)
        self.banned = banned_tokens(self.config, self.config.text.vocab_size, extra=self.config.tokens.eos)
        self.keys = row_keys(0, range(len(self.batch.tokens)))
        self.encode = jax.jit(encode_vision, static_argnums=1)
        params = load_params(folder, self.config)
        optimizer = make_optimizer(OptimizerOptions(schedule="constant"), 10**6, tuple(params))
        self.train_step = make_train_step(make_sft_loss(self.config), optimizer)
        self.state = create_state(params, optimizer)
        self.started = None

    def tower(self) -> None:
        jax.block_until_ready(self.encode(self.state.params, self.config, self.batch.vision))

    def prefill(self) -> None:
        arguments = (self.state.params, self.config, self.batch, self.sampling, self.keys, self.banned)
        self.started = jax.block_until_ready(start(*arguments))

    def decode(self) -> list[int]:
        until = np.int32(self.sampling.max_tokens)
        arguments = (self.state.params, self.config, self.started, self.sampling, self.banned, until)
        return np.asarray(decode_until(*arguments).tokens).ravel().tolist()

    def train(self) -> float:
        self.state, metrics = self.train_step(self.state, [self.batch])
        jax.block_until_ready(self.state)
        return float(metrics["loss"])

    def facts(self) -> dict[str, object]:
        """The device, the FLOPs of a train step, and the bytes read to decode a token of every row."""
        rows, length = self.batch.tokens.shape
        text = self.config.text
        cached = 2 * text.num_layers * rows * (length + self.sampling.max_tokens) * text.num_kv_heads * text.head_dim
        weights = sum(leaf.nbytes for leaf in jax.tree.leaves(self.state.params["decoder"]))
        device = jax.devices()[0]
        return {
            "platform": device.platform,
            "device_kind": device.device_kind,
            "dtype": self.config.dtype,
            "train_flops": model_flops(self.config, self.batch),
            "decode_bytes": weights + cached * np.dtype(self.config.dtype).itemsize,
        }

    def device_peak(self) -> int | None:
        return device_peak()


def device_peak() -> int | None:
    """Bytes of an accelerator's memory at the peak of this process; None where that is the host's."""
    stats = jax.devices()[0].memory_stats()
    return stats and stats.get("peak_bytes_in_use")


def make_batch(arrays: Arrays, config: ModelConfig) -> Batch:
    """The batch as the loader collates it, padded to its longest row."""
    rows, length = arrays.tokens.shape
    return collate(sequences(arrays, config), BatchOptions(rows, length_buckets=(length,), fold=True), config)


def sequences(arrays: Arrays, config: ModelConfig) -> list[Sequence]:
    """The rows as the processor hands them on."""
    made = []
    for row, length in enumerate(arrays.lengths):
        tokens = arrays.tokens[row, :length]
        is_video = tokens == config.tokens.video
        grid = tuple(int(n) for n in arrays.grid)
        patches = Patches(arrays.pixels[row], grid, 1.0, np.zeros(0), np.zeros(0, np.int64))
        made.append(
            Sequence(
                id=str(row),
                tokens=tokens,
                positions=arrays.positions[row, :, :length],
                loss_mask=arrays.answers[row, :length],
                visual_index=np.where(is_video, np.cumsum(is_video) - 1, -1).astype(np.int32),
                patches=(patches,),
                next_position=int(next_position(arrays.positions[row], length)),
            )
        )
    return made
