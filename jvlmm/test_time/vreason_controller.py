"""V-Reason in the decode loop: a `rollout.control.Controller` of the functions in `test_time.vreason`.

The cache keeps the values as they were read. What the controller changes in them is added to the heads' outputs, which
are linear in the values: Σ a · (V_new - V), in float32 whatever the model computes in. One vector-Jacobian product
through the rest of the last layer and the head is all an update needs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jvlmm.config import to_dict
from jvlmm.data.batch import Batch
from jvlmm.models import qwen2_5_vl
from jvlmm.models.cache import KVCache, cache_from_prompt, kv_head_axes
from jvlmm.models.config import ModelConfig
from jvlmm.rollout.control import PLAIN, Controller, Prompts
from jvlmm.sharding.rules import row_axes
from jvlmm.test_time import vreason
from jvlmm.test_time.pruning import dropped_rows, pruned
from jvlmm.test_time.vreason import Switch, VReasonOptions

_SMALLEST_BUCKET = 16
_RANDOM_SIGNS = 0x5EED  # folded into a row's key, so that signs do not follow its draws
TRACED = ("entropy", "ema", "peak", "alpha", "delta_norm", "video_attention")
"""Of every token. The last is the share of the last layer's attention that goes to video rows, through which ΔV acts:
the mean over heads, and 0 for the first token, which the prompt's own pass gave."""


@flax.struct.dataclass
class ControllerState:
    """Of B questions with up to N video rows; all is float32 but where it says otherwise."""

    slots: jax.Array  # int32 [B, N], of the cache
    mask: jax.Array  # bool [B, N], False on padding
    values: jax.Array  # [B, H_kv, N, head_dim], 0 on padding
    delta: jax.Array  # as values
    shift: jax.Array  # as values: V_new - V
    optimizer: Any  # of each question
    switch: Switch  # [B]
    keys: jax.Array  # PRNG key [B]
    step: jax.Array  # int32 [], tokens seen
    skipped: jax.Array  # int32 [B], steps that would have made ΔV non-finite
    freed: jax.Array  # [B], MiB of the cache that Lite has freed
    trace: dict[str, jax.Array]  # [B, capacity] under each name of TRACED; empty where none is kept


@dataclass(frozen=True)
class VReason:
    """V-Reason with these options; `optimizer` takes the place of their Adam. `rows` and `slots` come from a batch."""

    options: VReasonOptions = VReasonOptions()
    optimizer: optax.GradientTransformation | None = None
    rows: int = 0  # N
    slots: int = 0  # of the cache, for a prompt

    def fitted(self, batch: Batch, config: ModelConfig) -> Controller:
        """With sizes rounded up to an eighth of a power of two; plain decoding where no row has a video."""
        valid = np.asarray(batch.segment_ids) > 0
        is_video = valid & (np.asarray(batch.tokens) == config.tokens.video)
        video = is_video.sum(axis=-1)
        if not video.any():
            return PLAIN
        length = valid.shape[1]
        if self.options.lite is None:
            return replace(self, rows=min(_rounded(video.max()), length), slots=length)
        stays = video - dropped_rows(video, self.options.lite.ratio)
        slots = min(_rounded((valid.sum(axis=-1) - video + stays).max()), length)
        return replace(self, rows=min(_rounded(stays.max()), slots), slots=slots)

    def planned(self, length: int, rows: int) -> "VReason":
        """For prompts of `length` tokens, `rows` of them of a video, before there is a batch."""
        lite = self.options.lite
        dropped = 0 if lite is None else int(dropped_rows(np.asarray(rows), lite.ratio))
        return replace(self, rows=rows - dropped, slots=length - dropped)

    def begin(self, prompts: Prompts, config: ModelConfig, capacity: int) -> tuple[KVCache, ControllerState]:
        valid = prompts.segment_ids > 0
        is_video = valid & (prompts.tokens == config.tokens.video)
        count = is_video.sum(axis=-1)
        if self.options.lite is None:
            slots = jnp.argsort(~is_video, axis=-1)[:, : self.rows]
            cache = cache_from_prompt(*prompts.kept, prompts.segment_ids, self.slots + capacity)
            video = count
        else:
            kept, valid, text, video = pruned(prompts.kept, is_video, valid, self.options.lite, self.slots)
            slots = jnp.minimum(text[:, None] + jnp.arange(self.rows), self.slots - 1)
            cache = cache_from_prompt(*kept, valid.astype(jnp.int32), self.slots + capacity)
        mask = jnp.arange(self.rows) < video[:, None]
        values = jnp.take_along_axis(cache.values[-1], slots[:, None, :, None], axis=2).astype(jnp.float32)
        values = jnp.where(mask[:, None, :, None], values, 0.0)
        entropy = vreason.entropy_of(prompts.logits)
        zeros = jnp.zeros_like(values)
        state = ControllerState(
            slots=slots,
            mask=mask,
            values=values,
            delta=zeros,
            shift=zeros,
            optimizer=jax.vmap(self._inner().init)(zeros),
            switch=vreason.first_switch(entropy),
            keys=jax.vmap(partial(jax.random.fold_in, data=_RANDOM_SIGNS))(prompts.keys),
            step=jnp.int32(0),
            skipped=jnp.zeros(len(mask), jnp.int32),
            freed=(count - video) * (_row_bytes(config) / 2**20),
            trace={name: jnp.zeros((len(mask), capacity)) for name in TRACED} if self.options.trace else {},
        )
        return cache, self._recorded(state, entropy, self._signs(state), jnp.zeros_like(entropy))

    def step(
        self,
        params: Any,
        config: ModelConfig,
        tokens: jax.Array,
        positions: jax.Array,
        cache: KVCache,
        state: ControllerState,
    ) -> tuple[jax.Array, KVCache, ControllerState]:
        last, cache = qwen2_5_vl.open_step(params, config, tokens, positions, cache)
        weights = jnp.take_along_axis(last.weights, state.slots[:, None], axis=2)
        weights = jnp.where(state.mask[:, None], weights, 0.0)

        def logits_of(shift):
            mixed = last.mixed.astype(jnp.float32) + jax.vmap(vreason.shift_of_output)(weights, shift)
            return jax.vjp(
                lambda mixed: qwen2_5_vl.logits(
                    params, config, qwen2_5_vl.close_step(params, config, last.inputs, mixed.astype(config.dtype))
                ),
                mixed,
            )

        logits, pull = logits_of(state.shift)
        entropy = vreason.entropy_of(logits)
        state = state.replace(switch=vreason.advanced(state.switch, entropy, self.options.beta))
        signs = self._signs(state)

        def update(state):
            at = logits, pull
            for number in range(self.options.inner_steps):
                at = at if number == 0 else logits_of(state.shift)
                state = self._descended(state, *at, weights, signs)
            return state, logits_of(state.shift)[0] if self.options.resample_after_update else logits

        if self.options.mode != "off":
            due = (state.step + 1) % self.options.k == 0
            state, logits = jax.lax.cond(due, update, lambda state: (state, logits), state)
        return logits, cache, self._recorded(state, entropy, signs, weights.sum(axis=2).mean(axis=1))

    def axes(self, state: ControllerState) -> ControllerState:
        like_values = lambda x: kv_head_axes(x.ndim) if x.shape == state.values.shape else row_axes(x)  # noqa: E731
        return jax.tree.map(like_values, state)

    def report(self, state: ControllerState) -> Mapping[str, jax.Array]:
        rows = {"video_rows": state.mask.sum(axis=-1), "skipped_updates": state.skipped}
        lite = {} if self.options.lite is None else {"freed_mib": state.freed}
        return {**rows, **lite, **state.trace}

    def describe(self) -> dict[str, Any]:
        return {"vreason": {**to_dict(self.options), "optimizer": "adam" if self.optimizer is None else "given"}}

    def _inner(self) -> optax.GradientTransformation:
        return self.optimizer or vreason.adam(self.options)

    def _signs(self, state: ControllerState) -> jax.Array:
        """α float32 [B] of the token that `state.step` numbers."""
        keys = jax.vmap(partial(jax.random.fold_in, data=state.step))(state.keys)
        return jax.vmap(partial(vreason.sign_of, mode=self.options.mode))(state.switch, key=keys)

    def _descended(self, state: ControllerState, logits, pull, weights, signs) -> ControllerState:
        """After one step of the inner optimiser on α · (log V - H), α fixed."""
        (of_output,) = pull(vreason.switch_loss_gradient(logits, signs))
        gradients = jax.vmap(vreason.gradient)(state.values, state.delta, weights, of_output)
        low_enough = (signs < 0) & (vreason.entropy_of(logits) < self.options.min_entropy)
        step = jax.vmap(partial(vreason.descended, self._inner()))
        delta, optimizer, failed = step(gradients, state.optimizer, state.delta, ~low_enough)
        return state.replace(
            delta=delta,
            optimizer=optimizer,
            shift=vreason.preserved(state.values, delta) - state.values,
            skipped=state.skipped + failed,
        )

    def _recorded(self, state: ControllerState, entropy, signs, attention) -> ControllerState:
        """The state after a token, its figures kept where a trace is wanted."""
        column, state = state.step, state.replace(step=state.step + 1)
        if not state.trace:
            return state
        norms = jnp.sqrt(jnp.sum(jnp.square(state.delta), axis=(1, 2, 3)))
        told = entropy, state.switch.ema, state.switch.peak, signs, norms, attention
        figures = dict(zip(TRACED, told, strict=True))
        write = lambda name, store: jax.lax.dynamic_update_slice(store, figures[name][:, None], (0, column))  # noqa: E731
        return state.replace(trace={name: write(name, store) for name, store in state.trace.items()})


def _rounded(count: int) -> int:
    """The next multiple of an eighth of the power of two above: few programs, little padding."""
    step = max(_SMALLEST_BUCKET, (1 << (int(count) - 1).bit_length()) // 8)
    return -(-int(count) // step) * step


def _row_bytes(config: ModelConfig) -> int:
    """Bytes of a token's keys and values in every layer."""
    text = config.text
    return 2 * text.num_layers * text.num_kv_heads * text.head_dim * jnp.dtype(config.dtype).itemsize
