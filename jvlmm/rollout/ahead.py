"""The programs of generation before there are arrays: what a plan compiles, or counts by arithmetic."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from jvlmm.data.batch import Batch
from jvlmm.models.activations import (
    Share,
    feature_bytes,
    forward_bytes,
    score_bytes,
    tower_forward_bytes,
)
from jvlmm.models.config import ModelConfig
from jvlmm.models.qwen2_5_vl import abstract_params
from jvlmm.rollout.control import PLAIN, Controller
from jvlmm.rollout.generate import DecodeState, decode_until, start, traced_options
from jvlmm.rollout.sampling import SamplingOptions, row_keys
from jvlmm.sharding.estimate import Estimate, device_bytes
from jvlmm.sharding.rules import laid_out


class AbstractGeneration:
    """`generate` on one batch of ShapeDtypeStructs: one device runs it, without a mesh."""

    def __init__(
        self,
        config: ModelConfig,
        batch: Batch,
        options: SamplingOptions,
        frame_patches: int = 0,
        control: Controller = PLAIN,
    ):
        """`control` is fitted already."""
        self.config, self.batch, self.options, self.control = config, batch, options, control
        self.params = abstract_params(config)[0]
        pixels = 0 if batch.vision is None else len(batch.vision.pixels)
        self.share = Share(*batch.tokens.shape, patches=pixels, frame_patches=frame_patches)

    def trace_prefill(self, device: jax.Device) -> jax.stages.Traced:
        """The prompts, and the first token of each row."""
        return start.trace(*self._arguments(self.batch, self._keys(), device), control=self.control)

    def trace_decode(self, device: jax.Device) -> jax.stages.Traced:
        """The loop over all further tokens."""
        arguments = self._arguments(self._state(), None, device)
        return decode_until.trace(*arguments, self.options.max_tokens, control=self.control)

    def estimate_prefill(self) -> Estimate:
        """Kept from layer to layer are keys and values of the prompt and the visual features."""
        moment = forward_bytes(self.config, self.share), tower_forward_bytes(self.config, self.share)
        state = self._state()
        kept = device_bytes((state.cache.keys, state.cache.values)) * self.share.length / state.cache.valid.shape[1]
        return Estimate(
            parameters=device_bytes(self.params),
            inputs=device_bytes((self.batch, self._banned())),
            activations=round(kept + feature_bytes(self.config, self.share)),
            working=round(max(*moment, self._logit_bytes())),
            results=device_bytes(state),
        )

    def estimate_decode(self) -> Estimate:
        """The state is donated, but the loop over layers copies the cache; a step holds a layer's keys and values and
        its scores, or the logits of every row."""
        state = self._state()
        cache = device_bytes((state.cache.keys, state.cache.values))
        layer = cache / self.config.text.num_layers
        scores = score_bytes(self.config, Share(self.share.rows, 1)) * state.cache.valid.shape[1]
        return Estimate(
            parameters=device_bytes(self.params),
            inputs=device_bytes((state, self._banned())),
            activations=cache,
            working=round(max(layer + scores, self._logit_bytes())),
        )

    def _arguments(self, given: Any, keys: Any, device: jax.Device) -> tuple[Any, ...]:
        """Those of `start`, which takes keys, and of `decode_until`, which does not, on the device."""
        here = SingleDeviceSharding(device)
        place = lambda tree: laid_out(tree, jax.tree.map(lambda _: here, tree))  # noqa: E731
        drawn = () if keys is None else (place(keys),)
        options = traced_options(self.options)
        return place(self.params), self.config, place(given), options, *drawn, place(self._banned())

    def _state(self) -> DecodeState:
        def run(params, batch, keys, banned):
            return start(params, self.config, batch, traced_options(self.options), keys, banned, self.control)

        return jax.eval_shape(run, self.params, self.batch, self._keys(), self._banned())

    def _keys(self) -> jax.ShapeDtypeStruct:
        return jax.eval_shape(lambda: row_keys(0, [0] * self.share.rows))

    def _banned(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((self.config.text.vocab_size,), jnp.bool_)

    def _logit_bytes(self) -> float:
        """float32 [B, V] as they are, banned, and normalised."""
        return 3 * 4.0 * self.share.rows * self.config.text.vocab_size
