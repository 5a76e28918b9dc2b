"""The vision tower: windowed and per-frame attention over a flat axis of patches, and the merger."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jvlmm.models.attention import attend
from jvlmm.models.config import ModelConfig, VisionConfig
from jvlmm.models.layers import GatedMLP, RMSNorm, inverse_frequencies, linear, rotate
from jvlmm.models.remat import block_input, rematerialise
from jvlmm.models.vision_inputs import Grouping, VisionInputs
from jvlmm.sharding.rules import constrain

_EPS = 1e-6
_ROPE_THETA = 10000.0


def normalise_pixels(pixels: jax.Array, config: VisionConfig) -> jax.Array:
    """uint8 [N, C * ...] to float32 [N, C * ...]: (x / 255 - mean) / std by channel."""
    per_channel = config.patch_dim // config.in_channels
    mean = np.repeat(np.float32(config.image_mean), per_channel)
    std = np.repeat(np.float32(config.image_std), per_channel)
    return (pixels.astype(jnp.float32) / 255 - mean) / std


def rotary_tables(rotary_ids: jax.Array, config: VisionConfig) -> tuple[jax.Array, jax.Array]:
    """Two float32 [N, head_dim / 2]: a quarter of the head turns with the row, a quarter with the column."""
    frequencies = inverse_frequencies(config.head_dim // 2, _ROPE_THETA)
    angles = (rotary_ids[:, :, None].astype(jnp.float32) * frequencies).reshape(len(rotary_ids), -1)
    return jnp.cos(angles), jnp.sin(angles)


@jax.custom_vjp
def take_rows(x: jax.Array, index: jax.Array, inverse: jax.Array) -> jax.Array:
    """Rows of x [N, ...] at `index` [M], zeros where it is -1.

    `inverse` [N] is the place of each row in the result, -1 where it has none; with it the gradient is a gather
    too, where the transpose of a plain gather is a scatter-add, which TPUs run serially.
    """
    rows = jnp.take(x, jnp.maximum(index, 0), axis=0)
    return jnp.where((index >= 0).reshape(-1, *[1] * (x.ndim - 1)), rows, 0)


def _take_rows_forward(x, index, inverse):
    return take_rows(x, index, inverse), (index, inverse)


def _take_rows_backward(residuals, gradient):
    index, inverse = residuals
    return take_rows(gradient, inverse, index), None, None


take_rows.defvjp(_take_rows_forward, _take_rows_backward)


def attend_in_groups(query: jax.Array, key: jax.Array, value: jax.Array, grouping: Grouping) -> jax.Array:
    """Attention inside groups: three [N, H, head_dim] -> [N, H, head_dim]."""
    if grouping.index is None:
        return _attend_in_runs(query, key, value, grouping.runs)
    taken = [take_rows(x, grouping.index.ravel(), grouping.inverse) for x in (query, key, value)]
    segments = (grouping.index >= 0).astype(jnp.int32)
    mixed = attend(*(_cut(x, grouping.size) for x in taken), segments, segments)
    return take_rows(mixed.reshape(-1, *mixed.shape[2:]), grouping.inverse, grouping.index.ravel())


def _attend_in_runs(query, key, value, runs):
    """`attend_in_groups` on an axis that repeats `runs`."""
    repeated = sum(size * count for size, count in runs)
    repeats = [x.reshape(-1, repeated, *x.shape[1:]) for x in (query, key, value)]
    mixed, start = [], 0
    for size, count in runs:
        end = start + size * count
        inside = attend(*(_cut(x[:, start:end], size) for x in repeats))
        mixed.append(inside.reshape(-1, end - start, *inside.shape[2:]))
        start = end
    return jnp.concatenate(mixed, axis=1).reshape(query.shape)


def _cut(x, size):
    """[..., H, head_dim] to groups of `size` rows: [G, H, size, head_dim]."""
    return x.reshape(-1, size, *x.shape[-2:]).swapaxes(1, 2)


class VisionAttention(nn.Module):
    """Bidirectional attention inside groups of patches, with two-dimensional rotary embedding."""

    config: ModelConfig

    def setup(self):
        vision = self.config.vision
        qkv = (3, vision.num_heads, vision.head_dim)
        self.qkv = linear(self.config, qkv, ("vision_embed", "qkv", "vision_heads", "vision_head_dim"), bias=True)
        names = ("vision_heads", "vision_head_dim", "vision_embed")
        self.proj = linear(self.config, vision.hidden_size, names, bias=True, axis=(-2, -1))

    def __call__(self, x, rope, mix):
        """x [N, D] -> [N, D]; `mix` is attention of queries, keys and values, each [N, H, head_dim]."""
        query, key, value = (part[:, 0] for part in jnp.split(self.qkv(x), 3, axis=1))
        cos, sin = (table[:, None] for table in rope)
        return self.proj(mix(rotate(query, cos, sin), rotate(key, cos, sin), value))


class VisionBlock(nn.Module):
    """Pre-norm attention and MLP with residuals."""

    config: ModelConfig

    def setup(self):
        config, vision = self.config, self.config.vision
        self.norm1 = RMSNorm(_EPS, "vision_embed", config.dtype, config.param_dtype)
        self.attn = VisionAttention(config)
        self.norm2 = RMSNorm(_EPS, "vision_embed", config.dtype, config.param_dtype)
        self.mlp = GatedMLP(config, vision.intermediate_size, ("vision_embed", "vision_mlp"), bias=True)

    def __call__(self, x, rope, groupings: tuple[Grouping, ...], choice=0):
        """x [N, D] -> [N, D], attending in `groupings[choice]`; `choice` int32 [] may be traced."""
        x = block_input(x)
        branches = [partial(attend_in_groups, grouping=grouping) for grouping in groupings]
        x = self._place(x + self.attn(self.norm1(x), rope, partial(jax.lax.switch, choice, branches)))
        return self._place(x + self.mlp(self.norm2(x)))

    def _place(self, x):
        return constrain(x, self.config.rules, (None, None))


class VisionTower(nn.Module):
    """Patch embedding and blocks. A 3-D convolution whose stride is its kernel is a product with flat patches."""

    config: ModelConfig

    def setup(self):
        config, vision = self.config, self.config.vision
        self.patch_embed = linear(config, vision.hidden_size, ("patch", "vision_embed"), bias=False)
        if config.scan_layers:
            self.blocks = VisionBlock(config)
        else:
            block = rematerialise(VisionBlock, config.remat, scanned=False)
            self.blocks = [block(config) for _ in range(vision.depth)]

    def __call__(self, inputs: VisionInputs) -> jax.Array:
        """Patches to states [N, D] in window order."""
        vision = self.config.vision
        x = self.patch_embed(normalise_pixels(inputs.pixels, vision))
        rope = rotary_tables(inputs.rotary_ids, vision)
        spans_frame = [i in vision.fullatt_block_indexes for i in range(vision.depth)]
        groupings = (inputs.windows, inputs.frames)
        if self.config.scan_layers:
            return self._scan(x, rope, groupings, jnp.asarray(spans_frame, jnp.int32))
        for block, choice in zip(self.blocks, spans_frame, strict=True):
            x = block(x, rope, (groupings[choice],))
        return x

    def _scan(self, x, rope, groupings, choices):
        def body(block, x, choice):
            return block(x, rope, groupings, choice), None

        scan = nn.scan(
            rematerialise(body, self.config.remat, scanned=True),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=self.config.vision.depth,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        return scan(self.blocks, x, choices)[0]


class PatchMerger(nn.Module):
    """Norm, then a two-layer MLP over merge × merge neighbours, which are consecutive on the flat axis."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, D] -> features [N / merge², out_hidden_size]."""
        config, vision = self.config, self.config.vision
        x = RMSNorm(_EPS, "vision_embed", config.dtype, config.param_dtype, name="ln_q")(x)
        width = vision.hidden_size * vision.spatial_merge_size**2
        x = x.reshape(-1, width)
        x = linear(config, width, ("vision_merged", "vision_mlp"), bias=True, name="fc1")(x)
        x = nn.gelu(x, approximate=False)
        return linear(config, vision.out_hidden_size, ("vision_mlp", "embed"), bias=True, name="fc2")(x)
