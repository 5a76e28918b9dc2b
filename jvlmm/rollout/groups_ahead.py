"""The programs of rollouts before there are arrays: what a plan compiles, or counts by arithmetic."""

from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh

from jvlmm.data.batch import Batch, BatchOptions, abstract_batch
from jvlmm.data.groups import abstract_features
from jvlmm.models.activations import Share, feature_bytes, forward_bytes, score_bytes, share_of, tower_forward_bytes
from jvlmm.models.config import ModelConfig
from jvlmm.models.vision_inputs import VisionInputs, abstract_vision_inputs
from jvlmm.rollout.engine import RolloutOptions, for_readers
from jvlmm.rollout.features import encode
from jvlmm.rollout.generate import traced_options
from jvlmm.rollout.groups import ReadPrompts, Slots, axes_of, decode, empty_slots, read
from jvlmm.rollout.sampling import SamplingOptions
from jvlmm.sharding.batches import row_shards, shardings_over
from jvlmm.sharding.estimate import Estimate, device_bytes
from jvlmm.sharding.rules import ShardingRules, fitting_shardings, laid_out, replicated


class AbstractRollout:
    """What an `Engine` and `VisualFeatures` run, at the largest, on a mesh of devices or of a mere number of them."""

    def __init__(
        self,
        config: ModelConfig,
        params: Any,
        mesh: Mesh | AbstractMesh,
        rules: ShardingRules,
        of_prompt: BatchOptions,
        frame_patches: int | None,
        sampling: SamplingOptions,
        options: RolloutOptions,
        group: int,
    ):
        """`params` are ShapeDtypeStructs that say how they lie; `frame_patches` None: prompts are of text alone.

        Raises ConfigError where the rows do not divide over the devices.
        """
        self.config, self.params, self.mesh, self.rules = config, params, mesh, rules
        self.sampling, self.options, self.group = sampling, options, group
        self.of_prompt, self.frame_patches = of_prompt, frame_patches
        self.readers, parts = row_shards(mesh, rules)
        options.check_readers(self.readers)
        self.encoders = self.readers * parts

    @cached_property
    def vision(self) -> VisionInputs:
        """The media of a prompt on every device that encodes."""
        inputs = abstract_vision_inputs(self.of_prompt.patch_buckets[-1], self.frame_patches, self.config.vision)
        if self.mesh.size > 1:
            inputs = jax.tree.map(lambda x: jax.ShapeDtypeStruct((self.encoders, *x.shape), x.dtype), inputs)
        return laid_out(inputs, shardings_over("media", inputs, self.mesh, self.rules))

    @cached_property
    def prompts(self) -> tuple[Batch, jax.ShapeDtypeStruct | None]:
        """A prompt for every reader, and the features of their media."""
        shapes = for_readers(self.of_prompt, self.readers)
        given = abstract_batch(shapes, self.config, None), None
        if self.frame_patches is not None:
            given = given[0], abstract_features(shapes, self.config)
        return laid_out(given, shardings_over("batch", given, self.mesh, self.rules))

    @cached_property
    def read_prompts(self) -> ReadPrompts:
        """What is kept of them, without saying how it lies."""
        batch, features = self.prompts
        return jax.eval_shape(partial(read, config=self._plain), self.params, batch=batch, features=features)

    @cached_property
    def slots(self) -> Slots:
        """All rows with their slots."""
        width = min(self.options.slots, self.group)
        sizes = {"rows": self.options.rows, "group": width, "columns": self.columns}
        slots = jax.eval_shape(partial(empty_slots, config=self._plain, **sizes), self.read_prompts)
        return laid_out(slots, fitting_shardings(self.mesh, self.rules, axes_of(slots), slots))

    @property
    def columns(self) -> int:
        """Tokens a slot has room for."""
        return traced_options(self.sampling).max_tokens

    def trace_tower(self) -> jax.stages.Traced:
        """The visual features of a prompt on every device."""
        with jax.set_mesh(self.mesh):
            return encode.trace(self.params, self.config, self.vision)

    def trace_prefill(self) -> jax.stages.Traced:
        """One prompt of every reader."""
        with jax.set_mesh(self.mesh):
            return read.trace(self.params, self.config, *self.prompts)

    def trace_decode(self) -> jax.stages.Traced:
        """All tokens of the completions of all slots."""
        numbers = [np.int32(n) for n in (self.sampling.max_tokens, self.columns, 0)]
        with jax.set_mesh(self.mesh):
            arguments = self.params, self.config, self.slots, traced_options(self.sampling), self._banned()
            return decode.trace(*arguments, *numbers)

    def estimate_tower(self) -> Estimate:
        """A block's working set; the features are the result."""
        share = Share(0, 0, patches=self.of_prompt.patch_buckets[-1], frame_patches=self.frame_patches)
        return Estimate(
            parameters=device_bytes(self.params),
            inputs=device_bytes(self.vision),
            working=round(tower_forward_bytes(self.config, share)),
            results=round(feature_bytes(self.config, share)),
        )

    def estimate_prefill(self) -> Estimate:
        """Keys and values of the prompts are the result, and grow from layer to layer."""
        share = share_of(self.prompts[0], self.mesh, self.rules, 0)
        return Estimate(
            parameters=device_bytes(self.params),
            inputs=device_bytes(self.prompts),
            working=round(forward_bytes(self.config, share)),
            results=round(device_bytes((self.slots.cache.prompt_keys, self.slots.cache.prompt_values)) / self._rows),
        )

    def estimate_decode(self) -> Estimate:
        """The slots are donated, but the loop over layers copies the completions' part of the cache; a step holds a
        layer's keys and values and its scores, or the logits of every slot."""
        cache = self.slots.cache
        own, prompt = device_bytes((cache.keys, cache.values)), device_bytes((cache.prompt_keys, cache.prompt_values))
        rows = self._rows * self.slots.active.shape[1]
        share = share_of(self.prompts[0], self.mesh, self.rules, 0)
        keys = self.prompts[0].tokens.shape[1] + self.columns
        scores = score_bytes(self.config, Share(rows, 1, heads=share.heads)) * keys
        logits = 3 * 4.0 * rows * self.config.text.vocab_size / share.vocab
        return Estimate(
            parameters=device_bytes(self.params),
            inputs=device_bytes(self.slots),
            activations=own,
            working=round(max((own + prompt) / self.config.text.num_layers + scores, logits)),
        )

    @property
    def _plain(self) -> ModelConfig:
        """The same shapes, sooner known."""
        return replace(self.config, attention="xla", rules=None)

    @property
    def _rows(self) -> int:
        """Of one device."""
        return self.options.rows // self.readers

    def _banned(self) -> jax.ShapeDtypeStruct:
        struct = jax.ShapeDtypeStruct((self.config.text.vocab_size,), jnp.bool_)
        return laid_out(struct, replicated(self.mesh))
