"""A GRPO step in two layouts: the prompt and its video once for the group, or once for every completion.

Both train the whole model, the tower included; the prompt's video is encoded once in a rollout and once in an update,
or as often as there are completions. The usual layout is updated row by row, its gradients summed, as all rows at once
need more memory than most machines have; what they need is counted nonetheless.
"""

import zlib
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import flax.struct
import jax
import numpy as np

from jvlmm.bench.group_workload import GroupWorkload, make_rollouts
from jvlmm.bench.own import device_peak, sequences
from jvlmm.bench.workload import make_arrays
from jvlmm.data.batch import Batch, BatchOptions, collate
from jvlmm.data.groups import GroupBatch, collate_groups, separate_rows
from jvlmm.models.config import ModelConfig
from jvlmm.models.execution import for_training
from jvlmm.models.huggingface import load_config, load_params
from jvlmm.objectives.grpo import GRPOConfig, policy_loss
from jvlmm.rollout.engine import Engine, RolloutOptions
from jvlmm.rollout.features import VisualFeatures
from jvlmm.rollout.generate import generate
from jvlmm.rollout.sampling import SamplingOptions, banned_tokens
from jvlmm.training.completions import row_log_probs
from jvlmm.training.flops import group_flops, vision_flops
from jvlmm.training.optimizer import OptimizerOptions, make_optimizer
from jvlmm.training.policy_loss import make_policy_loss
from jvlmm.training.state import create_state
from jvlmm.training.step import LossFn, make_train_step

_SEED = 0
_COMPARED = ("loss", "grad_norm", "sampler_gap_sum")


class _Layout:
    """Weights, prompt, completions and optimiser, the same for both; see `worker.Side`."""

    def __init__(self, folder: Path):
        self.workload = GroupWorkload.load(folder)
        self.config = for_training(load_config(folder), jax.default_backend())
        arrays = make_arrays(self.workload.of_prompt(self.config), self.config)
        self.prompt = sequences(arrays, self.config)[0]
        self.rollouts, self.advantages = make_rollouts(self.workload, self.config)
        self.sampling = SamplingOptions(max_tokens=self.workload.completion, temperature=1.0)
        params = load_params(folder, self.config)
        optimizer = make_optimizer(OptimizerOptions(schedule="constant"), 10**6, tuple(params))
        self.state = create_state(params, optimizer)
        self.step = make_train_step(self.loss(), optimizer)

    def loss(self) -> LossFn:
        raise NotImplementedError

    def batches(self) -> list[Any]:
        """The device steps of an update."""
        raise NotImplementedError

    def whole(self) -> Any:
        """The update as one device step."""
        raise NotImplementedError

    def options(self, rows: int, length: int) -> BatchOptions:
        return BatchOptions(rows, length_buckets=(length,), fold=True)

    def update(self) -> dict[str, float]:
        """Returns what both layouts must agree on; log π of the completions shows in the gap to the sampler's."""
        self.state, metrics = self.step(self.state, self.batches())
        jax.block_until_ready(self.state)
        return {name: float(metrics[name]) for name in _COMPARED}

    def memory(self) -> int:
        """Bytes of an update in one device step, as compiled: weights, moments, batch and temporaries."""
        return _allocated(self.step.trace(self.state, self.whole()))

    def device_kind(self) -> str:
        return jax.devices()[0].device_kind

    def facts(self) -> dict[str, Any]:
        device = jax.devices()[0]
        told = {"platform": device.platform, "device_kind": self.device_kind(), "dtype": self.config.dtype}
        return {**told, "update_memory": self.memory()}

    def device_peak(self) -> int | None:
        return device_peak()


class Shared(_Layout):
    """What the project runs: the prompt is read once for its group, in rollout and update."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        of_prompts = self.options(1, self.prompt.length)
        self.features = VisualFeatures(self.config, of_prompts)
        words = SimpleNamespace(length=self.config.text.vocab_size)  # all that is asked of a tokenizer
        rollout = RolloutOptions(rows=1, slots=self.workload.group)
        self.engine = Engine(self.config, words, self.sampling, rollout, of_prompts, self.config.tokens.eos)

    def loss(self) -> LossFn:
        return make_policy_loss(self.config, GRPOConfig())

    def rollout(self) -> list[list[int]]:
        """The group's completions."""
        return self._sample(self.workload.group)

    def rollout_one(self) -> list[list[int]]:
        """One completion alone."""
        return self._sample(1)

    def batches(self) -> list[GroupBatch]:
        return [self.whole()]

    def whole(self) -> GroupBatch:
        options = self.options(1, self.prompt.length)
        batch = collate_groups([self.prompt], [self.rollouts], options, self.config)
        return batch.replace(advantages=self.advantages[None])

    def facts(self) -> dict[str, Any]:
        sizes, (patches,) = self.workload, self.prompt.patches
        _, height, width = patches.grid
        decoder = group_flops(self.config.text, sizes.prompt, sizes.completion, sizes.group)
        tower = vision_flops(self.config.vision, len(patches.pixels), height * width)
        return super().facts() | {"update_flops": 3 * (decoder + tower)}

    def _sample(self, group: int) -> list[list[int]]:
        features = self.features.of(self.state.params, [self.prompt])
        rollouts = self.engine.sample(self.state.params, [self.prompt], features, group, _SEED)[0]
        return [rollout.tokens.tolist() for rollout in rollouts]


@flax.struct.dataclass
class _Rows:
    """Some rows of a prompt and a completion each."""

    rows: Batch
    advantages: np.ndarray  # float32 [1, rows]
    sampler_log_probs: np.ndarray  # float32 [1, rows, C]


class Naive(_Layout):
    """The usual layout: every completion is a row of its own, with its own copy of prompt and media."""

    def loss(self) -> LossFn:
        return partial(_row_loss, config=self.config, prompt=self.workload.prompt)

    def rollout(self) -> list[list[int]]:
        """The group's completions, drawn with the keys that the engine draws with."""
        group = self.workload.group
        batch = collate([self.prompt] * group, self.options(group, self.prompt.length), self.config)
        of_prompt = jax.random.fold_in(jax.random.key(_SEED), zlib.crc32(self.prompt.id.encode()))
        keys = jax.vmap(partial(jax.random.fold_in, of_prompt))(np.arange(group, dtype=np.uint32))
        banned = banned_tokens(self.config, self.config.text.vocab_size, self.config.tokens.eos)
        return generate(self.state.params, self.config, batch, self.sampling, keys, banned).tokens.tolist()

    def batches(self) -> list[_Rows]:
        return [self._rows(slice(row, row + 1)) for row in range(self.workload.group)]

    def whole(self) -> _Rows:
        return self._rows(slice(None))

    def facts(self) -> dict[str, Any]:
        moments = sum(leaf.nbytes for leaf in jax.tree.leaves(self.state.opt_state))
        of_row = _allocated(self.step.trace_more(self.state, self.batches()[-1]))
        return super().facts() | {"row_update_memory": moments + of_row}

    def _rows(self, chosen: slice) -> _Rows:
        rollouts = self.rollouts[chosen]
        rows = separate_rows(self.prompt, rollouts)
        batch = collate(rows, self.options(len(rows), rows[0].length), self.config)
        log_probs = np.stack([rollout.log_probs for rollout in rollouts])
        return _Rows(batch, self.advantages[None, chosen], log_probs[None])


def _row_loss(params: Any, batch: _Rows, config: ModelConfig, prompt: int):
    """The policy loss of rows whose first `prompt` tokens are the prompt, for `make_train_step`."""
    log_probs, mask = (x[None, :, prompt - 1 : -1] for x in row_log_probs(params, config, batch.rows))
    return policy_loss(log_probs, None, batch.advantages, mask, GRPOConfig(), sampler_log_probs=batch.sampler_log_probs)


def _allocated(program: jax.stages.Traced) -> int:
    """Bytes a program needs: arguments, results that do not take their place, and temporaries."""
    sizes = program.lower().compile().memory_analysis()
    results = sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    return sizes.argument_size_in_bytes + results + sizes.temp_size_in_bytes
