"""The language model: grouped-query attention, M-RoPE, SwiGLU, RMSNorm (Qwen2.5, Qwen2.5-VL)."""

from dataclasses import replace
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jvlmm.models.attention import attend
from jvlmm.models.cache import GroupCache, GroupLayerCache, KVCache, LayerCache, OpenLayerCache, Stores, of_layer
from jvlmm.models.config import ModelConfig, TextConfig
from jvlmm.models.layers import GatedMLP, RMSNorm, inverse_frequencies, linear, rotate
from jvlmm.models.remat import block_input, rematerialise
from jvlmm.models.shared_prefix import SharedPrefix
from jvlmm.models.tiles import add_in_tiles
from jvlmm.sharding.rules import constrain


def _residual_variance(text: TextConfig) -> float:
    """Of what a new layer adds to the residual stream: all together as much as one, as in GPT-2 (Radford et al. 2019).

    What a token is then stays legible through the layers, beside an embedding of the variance of a word's scores.
    """
    return 1 / (2 * text.num_layers)


def mrope_tables(positions: jax.Array, config: TextConfig) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines of the multimodal rotary embedding (Qwen2-VL, Wang et al. 2024, section 2.1).

    The frequencies are dealt to time, height and width in three runs of `mrope_section`.

    Args:
        positions: int32 [B, 3, L].

    Returns:
        two float32 [B, L, head_dim / 2].
    """
    axis_of_frequency = np.repeat(np.arange(3), config.mrope_section)
    frequencies = inverse_frequencies(config.head_dim, config.rope_theta)
    angles = positions.astype(jnp.float32)[:, axis_of_frequency] * frequencies[:, None]
    angles = angles.swapaxes(1, 2)
    return jnp.cos(angles), jnp.sin(angles)


@flax.struct.dataclass
class Among:
    """Attention of the tokens given among themselves, each to those before it in its segment."""

    segment_ids: jax.Array  # int32 [B, L], 0 is padding
    prefix: SharedPrefix | None = flax.struct.field(pytree_node=False)  # where rows hold a prompt and completions
    config: ModelConfig = flax.struct.field(pytree_node=False)

    def attend(self, query, key, value) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """[B, H, L, head_dim] and [B, H_kv, L, head_dim] -> (mixed [B, L, H, head_dim], (key, value))."""
        segments = self.segment_ids, self.segment_ids
        mixed = attend(query, key, value, *segments, causal=True, config=self.config, prefix=self.prefix)
        return mixed, (key, value)


class Attention(nn.Module):
    """Causal grouped-query attention over the tokens given (`Among`), or over a cache they are written to."""

    config: ModelConfig

    def setup(self):
        text = self.config.text
        kv = (text.num_kv_heads, text.head_dim)
        self.q_proj = linear(self.config, (text.num_heads, text.head_dim), ("embed", "heads", "head_dim"), bias=True)
        self.k_proj = linear(self.config, kv, ("embed", "kv_heads", "head_dim"), bias=True)
        self.v_proj = linear(self.config, kv, ("embed", "kv_heads", "head_dim"), bias=True)
        names = ("heads", "head_dim", "embed")
        self.o_proj = linear(
            self.config, text.hidden_size, names, bias=False, axis=(-2, -1), variance=_residual_variance(text)
        )

    def mix(self, x, rope, context: Among | LayerCache | GroupLayerCache) -> tuple[Any, Stores]:
        """x [B, L, D] -> (what `context` makes of it, keys and values).

        The first is the heads' outputs [B, L, H, head_dim], which `o_proj` projects back, with the weights where the
        context tells them; the second [B, H_kv, L, head_dim], or the cache's own with these written.
        """
        cos, sin = (table[:, None] for table in rope)  # over heads
        query = rotate(self.q_proj(x).swapaxes(1, 2), cos, sin)
        key = rotate(self.k_proj(x).swapaxes(1, 2), cos, sin)
        return context.attend(query, key, self.v_proj(x).swapaxes(1, 2))


class DecoderLayer(nn.Module):
    """Pre-norm attention and MLP with residuals."""

    config: ModelConfig

    def setup(self):
        text = self.config.text
        norm = (text.rms_norm_eps, "embed", self.config.dtype, self.config.param_dtype)
        self.input_layernorm = RMSNorm(*norm)
        self.self_attn = Attention(self.config)
        self.post_attention_layernorm = RMSNorm(*norm)
        self.mlp = GatedMLP(
            self.config, text.intermediate_size, ("embed", "mlp"), bias=False, variance=_residual_variance(text)
        )

    def __call__(self, x, rope, context):
        """x [B, L, D] -> ([B, L, D], keys and values as `Attention.mix` gives them)."""
        x = block_input(x)
        mixed, kept = self.mix(x, rope, context)
        return self.finish(x, mixed), kept

    def mix(self, x, rope, context):
        """The first half, up to the heads' outputs: as `Attention.mix`."""
        return self.self_attn.mix(self.input_layernorm(x), rope, context)

    def finish(self, x, mixed):
        """The second half: x [B, L, D] as it entered, and the heads' outputs [B, L, H, head_dim], to [B, L, D]."""
        x = self._place(x + self.self_attn.o_proj(mixed))
        return self._place(self._fed(x))

    def _fed(self, x):
        """x and the MLP's share; in training only `mlp_tile` tokens have hidden units at a time."""
        config = self.config
        if config.mlp_tile is None or self.is_initializing():
            return x + _normed_mlp(self, x)
        weights = {name: self.variables["params"][name] for name in ("post_attention_layernorm", "mlp")}
        axes = {"post_attention_layernorm": {"scale": ("embed",)}, "mlp": self.mlp.axes(weights["mlp"])}

        def update(weights, x):
            """What the hidden units of `weights` add."""
            text = replace(config.text, intermediate_size=weights["mlp"]["gate_proj"]["kernel"].shape[-1])
            layer = DecoderLayer(replace(config, text=text), parent=None)
            return layer.apply({"params": weights}, x, method=_normed_mlp)

        return add_in_tiles(update, weights, axes, x, config.mlp_tile, config.mlp_parts, config.rules, config.dtype)

    def _place(self, x):
        return constrain(x, self.config.rules, ("batch", "length", None))


def _normed_mlp(layer: DecoderLayer, x: jax.Array) -> jax.Array:
    return layer.mlp(layer.post_attention_layernorm(x))


class Embedding(nn.Module):
    """A table [V, D]; also the shape of the output head, whose rows are words in the same way."""

    config: ModelConfig

    def setup(self):
        text = self.config.text
        init = nn.initializers.normal(text.hidden_size**-0.5)  # as a head, it gives scores of variance 1
        init = nn.with_logical_partitioning(init, ("vocab", "embed"))
        self.embedding = self.param("embedding", init, (text.vocab_size, text.hidden_size), self.config.param_dtype)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        return jnp.take(self.embedding, tokens, axis=0).astype(self.config.dtype)


class Decoder(nn.Module):
    """Embedding, layers and final norm; `lm_head` exists where the head is not tied to the embedding."""

    config: ModelConfig

    def setup(self):
        config, text = self.config, self.config.text
        self.embed = Embedding(config)
        if config.scan_layers:
            self.layers = DecoderLayer(config)
        else:
            layer = rematerialise(DecoderLayer, config.remat, scanned=False)
            self.layers = [layer(config) for _ in range(text.num_layers)]
        self.norm = RMSNorm(text.rms_norm_eps, "embed", config.dtype, config.param_dtype)
        if not text.tie_word_embeddings:
            self.lm_head = Embedding(config)

    def head(self) -> jax.Array:
        """The output head [V, D]."""
        return (self.embed if self.config.text.tie_word_embeddings else self.lm_head).embedding

    def inputs(self, tokens, visual_index=None, features=None) -> jax.Array:
        """Embeddings [B, L, D] of the tokens, with feature rows where `visual_index` is not -1."""
        x = self.embed(tokens)
        if features is None:
            return x
        blocks = features.reshape(-1, *features.shape[-2:])
        index = jnp.maximum(visual_index, 0).reshape(len(blocks), -1, visual_index.shape[1])
        rows = jax.vmap(lambda block, index: jnp.take(block, index, axis=0))(blocks, index)
        return jnp.where((visual_index >= 0)[..., None], rows.reshape(x.shape).astype(x.dtype), x)

    def __call__(self, x, positions, segment_ids, prefix: SharedPrefix | None = None, keep: bool = False):
        """x [B, L, D] -> (hidden [B, L, D], (keys, values) of every layer, or None without `keep`)."""
        rope = mrope_tables(positions, self.config.text)
        among = Among(segment_ids, prefix, self.config)
        if self.config.scan_layers:
            x, kept = self._scan(lambda layer, x, _: _run(layer, x, rope, among, keep), x)
        else:
            x, kept = _run_all(self.layers, x, rope, among, keep)
        return self.norm(x), kept

    def step(self, x, positions, cache: KVCache | GroupCache):
        """One token a row: x [B, 1, D], positions [B, 3, 1] -> (hidden [B, 1, D], cache)."""
        cache = cache.opened()
        rope = mrope_tables(positions, self.config.text)
        if self.config.scan_layers:

            def run(layer, carry, index):
                x, stores = carry
                return layer(x, rope, cache.layer(stores, index)), None

            (x, stores), _ = self._scan(run, (x, (cache.keys, cache.values)))
            return self.norm(x), cache.written(*stores)
        kept = []
        for number, layer in enumerate(self.layers):
            x, stores = layer(x, rope, cache.layer((cache.keys[number], cache.values[number]), number))
            kept.append(stores)
        return self.norm(x), cache.written(*zip(*kept, strict=True))

    def open_step(self, x, positions, cache: KVCache):
        """`step` up to the attention of the last layer: (its input, the heads' outputs, their weights, cache).

        x [B, 1, D], positions [B, 3, 1] -> ([B, 1, D], [B, 1, H, head_dim], float32 [B, H, T], cache).
        """
        cache = cache.opened()
        rope = mrope_tables(positions, self.config.text)
        last = self.config.text.num_layers - 1
        if self.config.scan_layers:

            def run(number, carry):
                x, stores = carry
                return self._stacked(number, "__call__", x, rope, cache.layer(stores, number))

            x, stores = jax.lax.fori_loop(0, last, run, (x, (cache.keys, cache.values)))
            view = _opened(cache.layer(stores, jnp.int32(last)))
            (mixed, weights), stores = self._stacked(last, "mix", x, rope, view)
            return x, mixed, weights, cache.written(*stores)
        kept = []
        for number, layer in enumerate(self.layers):
            view = cache.layer((cache.keys[number], cache.values[number]), number)
            if number < last:
                x, stores = layer(x, rope, view)
            else:
                (mixed, weights), stores = layer.mix(x, rope, _opened(view))
            kept.append(stores)
        return x, mixed, weights, cache.written(*zip(*kept, strict=True))

    def close_step(self, x, mixed):
        """What follows `open_step`: [B, 1, D] and heads' outputs [B, 1, H, head_dim] to hidden [B, 1, D]."""
        if self.config.scan_layers:
            return self.norm(self._stacked(self.config.text.num_layers - 1, "finish", x, mixed))
        return self.norm(self.layers[-1].finish(x, mixed))

    def _stacked(self, number, method, *arguments):
        """A method of one of the stacked layers."""
        params = jax.tree.map(lambda x: of_layer(x, number), self.variables["params"]["layers"])
        return DecoderLayer(self.config, parent=None).apply({"params": params}, *arguments, method=method)

    def _scan(self, body, carry):
        """Run `body(layer, carry, index)` over the stacked layers."""
        scan = nn.scan(
            rematerialise(body, self.config.remat, scanned=True),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=self.config.text.num_layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        return scan(self.layers, carry, jnp.arange(self.config.text.num_layers))


def _opened(view: LayerCache) -> OpenLayerCache:
    return OpenLayerCache(view.stores, view.valid, view.slot, view.index)


def _run(layer, x, rope, among, keep):
    x, kept = layer(x, rope, among)
    return x, kept if keep else None


def _run_all(layers, x, rope, among, keep):
    kept = []
    for layer in layers:
        x, pair = _run(layer, x, rope, among, keep)
        kept.append(pair)
    return x, tuple(zip(*kept, strict=True)) if keep else None
