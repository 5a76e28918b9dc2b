"""The programs of generation before there are arrays: what a plan compiles, or counts by arithmetic."""

from dataclasses import replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh

from jvlmm.data.batch import Batch
from jvlmm.models.activations import (
    Share,
    feature_bytes,
    forward_bytes,
    score_bytes,
    share_of,
    tower_forward_bytes,
)
from jvlmm.models.config import ModelConfig
from jvlmm.models.execution import on_mesh
from jvlmm.models.qwen2_5_vl import params_on_mesh
from jvlmm.rollout.control import PLAIN, Controller
from jvlmm.rollout.generate import DecodeState, axes_of, decode_until, start, traced_options
from jvlmm.rollout.sampling import SamplingOptions, row_keys
from jvlmm.sharding.batches import batch_shardings
from jvlmm.sharding.estimate import Estimate, device_bytes
from jvlmm.sharding.rules import ShardingRules, fitting_shardings, laid_out, replicated


class AbstractGeneration:
    """`generate` on one batch of ShapeDtypeStructs, on a mesh of devices or of a mere number of them."""

    def __init__(
        self,
        config: ModelConfig,
        batch: Batch,
        options: SamplingOptions,
        mesh: Mesh | AbstractMesh,
        rules: ShardingRules,
        frame_patches: int = 0,
        control: Controller = PLAIN,
    ):
        """`control` is fitted already."""
        self.config = on_mesh(config, mesh, rules)
        self.options, self.mesh, self.rules, self.control = traced_options(options), mesh, rules, control
        self.max_tokens = options.max_tokens
        self.batch = laid_out(batch, batch_shardings(batch, mesh, rules))
        self.share = share_of(self.batch, mesh, rules, frame_patches)

    @cached_property
    def params(self) -> Any:
        """The weights, as they lie."""
        return params_on_mesh(self.config, self.mesh, self.rules)[0]

    @cached_property
    def state(self) -> DecodeState:
        """What a prefill leaves."""
        plain = replace(self.config, attention="xla", rules=None)  # the same shapes, sooner known

        def run(params, batch, keys, banned):
            return start(params, plain, batch, self.options, keys, banned, self.control)

        state = jax.eval_shape(run, self.params, self.batch, self._keys(), self._banned())
        return laid_out(state, fitting_shardings(self.mesh, self.rules, axes_of(state, self.control), state))

    def trace_prefill(self) -> jax.stages.Traced:
        """The prompts, and the first token of each row."""
        with jax.set_mesh(self.mesh):
            given = self.batch, self.options, self._keys(), self._banned()
            return start.trace(self.params, self.config, *given, control=self.control)

    def trace_decode(self) -> jax.stages.Traced:
        """The loop over all further tokens."""
        with jax.set_mesh(self.mesh):
            given = self.state, self.options, self._banned(), self.max_tokens
            return decode_until.trace(self.params, self.config, *given, control=self.control)

    def estimate_prefill(self) -> Estimate:
        """Kept from layer to layer are keys and values of the prompt and the visual features."""
        moment = forward_bytes(self.config, self.share), tower_forward_bytes(self.config, self.share)
        state = self.state
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
        state = self.state
        cache = device_bytes((state.cache.keys, state.cache.values))
        layer = cache / self.config.text.num_layers
        one_token = Share(self.share.rows, 1, heads=self.share.heads)
        scores = score_bytes(self.config, one_token) * state.cache.valid.shape[1]
        return Estimate(
            parameters=device_bytes(self.params),
            inputs=device_bytes((state, self._banned())),
            activations=cache,
            working=round(max(layer + scores, self._logit_bytes())),
        )

    def _keys(self) -> jax.ShapeDtypeStruct:
        keys = jax.eval_shape(lambda: row_keys(0, [0] * len(self.batch.tokens)))
        return laid_out(keys, replicated(self.mesh))

    def _banned(self) -> jax.ShapeDtypeStruct:
        struct = jax.ShapeDtypeStruct((self.config.text.vocab_size,), jnp.bool_)
        return laid_out(struct, replicated(self.mesh))

    def _logit_bytes(self) -> float:
        """float32 [B, V] as they are, banned, and normalised."""
        return 3 * 4.0 * self.share.rows * self.config.text.vocab_size / self.share.vocab
