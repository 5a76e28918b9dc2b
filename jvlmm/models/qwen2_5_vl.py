"""Qwen2.5-VL (Bai et al. 2025): the whole model as pure functions of a plain dict of parameters.

Parameters, with D the width, H heads of size d, F the MLP's hidden size, V the vocabulary; kernels are
[inputs, outputs], biases have the shape of the outputs:

    vision
      patch_embed: kernel [C·2·14·14, D]
      blocks_0 … blocks_{depth-1}
        norm1, norm2: scale [D]
        attn: qkv {kernel [D, 3, H, d], bias [3, H, d]}, proj {kernel [H, d, D], bias [D]}
        mlp: gate_proj, up_proj {kernel [D, F], bias [F]}, down_proj {kernel [F, D], bias [D]}
    merger
      ln_q: scale [D];  fc1 {kernel [4D, 4D], bias [4D]};  fc2 {kernel [4D, D_out], bias [D_out]}
    decoder
      embed: embedding [V, D]
      layers_0 … layers_{n-1}
        input_layernorm, post_attention_layernorm: scale [D]
        self_attn: q_proj {kernel [D, H, d], bias [H, d]}, k_proj, v_proj {kernel [D, H_kv, d], bias [H_kv, d]},
                   o_proj {kernel [H, d, D]}
        mlp: gate_proj, up_proj {kernel [D, F]}, down_proj {kernel [F, D]}
      norm: scale [D]
      lm_head: embedding [V, D]  (absent where the head is tied to `embed`)

With `config.scan_layers` the blocks are stacked on a leading axis under `vision/blocks` and `decoder/layers`;
`stack_layers` and `unstack_layers` convert between the two.

Logical axis names: "vocab", "embed", "heads", "kv_heads", "head_dim", "mlp" of the decoder; "patch",
"vision_embed", "vision_heads", "vision_head_dim", "vision_mlp", "vision_merged" (4D) and "qkv" (3) of the tower
and merger; "layers" for the stacked axis.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh

from jvlmm.errors import ConfigError
from jvlmm.models.cache import GroupCache, KVCache, Stores, cache_from_prompt
from jvlmm.models.config import ModelConfig
from jvlmm.models.decoder import Decoder
from jvlmm.models.log_probs import logits_at, project, tiled_best_words, tiled_log_probs
from jvlmm.models.shared_prefix import SharedPrefix
from jvlmm.models.vision import PatchMerger, VisionTower
from jvlmm.models.vision_inputs import VisionInputs, build_vision_inputs
from jvlmm.sharding.rules import ShardingRules, constrain, laid_out, named_shardings

Params = Mapping[str, Any]
_STACKS = (("vision", "blocks"), ("decoder", "layers"))


@flax.struct.dataclass
class LastAttention:
    """A decoding step stopped between the last layer's attention and what follows it."""

    inputs: jax.Array  # [B, D], what entered the last layer
    mixed: jax.Array  # [B, H, head_dim], its heads' outputs
    weights: jax.Array  # float32 [B, H, T], over the slots of the cache


class Qwen2_5VL(nn.Module):
    """The Linen module; the functions below apply it to plain parameters."""

    config: ModelConfig

    def setup(self):
        self.vision = VisionTower(self.config)
        self.merger = PatchMerger(self.config)
        self.decoder = Decoder(self.config)

    def __call__(self, vision: VisionInputs, tokens: jax.Array, positions: jax.Array, segment_ids: jax.Array):
        """Touch every parameter, for initialisation."""
        hidden = self.forward(tokens, positions, segment_ids, jnp.zeros_like(tokens), self.encode_vision(vision))
        return project(hidden, self.decoder.head())

    def encode_vision(self, vision):
        return self.merger(self.vision(vision))

    def forward(self, tokens, positions, segment_ids, visual_index, features, prefix=None):
        return self.decoder(self.decoder.inputs(tokens, visual_index, features), positions, segment_ids, prefix)[0]

    def read(self, tokens, positions, segment_ids, visual_index, features):
        return self.decoder(self.decoder.inputs(tokens, visual_index, features), positions, segment_ids, keep=True)

    def decode_step(self, tokens, positions, cache):
        x = self.decoder.inputs(tokens[:, None])
        hidden, cache = self.decoder.step(x, positions[:, :, None], cache)
        return hidden[:, 0], cache

    def open_step(self, tokens, positions, cache):
        x = self.decoder.inputs(tokens[:, None])
        x, mixed, weights, cache = self.decoder.open_step(x, positions[:, :, None], cache)
        return LastAttention(x[:, 0], mixed[:, 0], weights), cache

    def close_step(self, inputs, mixed):
        return self.decoder.close_step(inputs[:, None], mixed[:, None])[:, 0]


def _init(config: ModelConfig, key: jax.Array):
    """Boxed parameters: arrays with their logical axis names."""
    merge = config.vision.spatial_merge_size
    pixels = np.zeros((merge**2, config.vision.patch_dim), np.uint8)
    vision, _ = build_vision_inputs([pixels], [(1, merge, merge)], config.vision, fold=True)
    tokens = jnp.zeros((1, 1), jnp.int32)
    positions = jnp.zeros((1, 3, 1), jnp.int32)
    return Qwen2_5VL(config).init(key, vision, tokens, positions, tokens)["params"]


def init_params(config: ModelConfig, key: jax.Array) -> Params:
    """Random parameters of `config.param_dtype`.

    Kernels are normal with variance 1 / inputs, less where they write to the decoder's residual stream; embeddings
    with variance 1 / D; biases are 0, norms 1.
    """
    return jax.jit(lambda key: nn.meta.unbox(_init(config, key)))(key)


def abstract_params(config: ModelConfig) -> tuple[Params, Params]:
    """The tree of `init_params` without its arrays: ShapeDtypeStructs, and a tuple of logical axis names a leaf."""
    boxed = _abstract_boxes(replace(config, remat="none", mlp_tile=None, attention="xla", rules=None))
    # `unbox` would place arrays on the current mesh; the names and shapes are wanted without one.
    shapes = jax.tree.map(lambda box: jax.ShapeDtypeStruct(box.value.shape, box.value.dtype), boxed, is_leaf=_is_box)
    return shapes, jax.tree.map(lambda box: tuple(box.names), boxed, is_leaf=_is_box)


def params_on_mesh(config: ModelConfig, mesh: Mesh | AbstractMesh, rules: ShardingRules) -> tuple[Params, Any]:
    """(ShapeDtypeStructs of `init_params` that say how they lie on a mesh, their shardings alone).

    Raises ConfigError naming a parameter that the mesh does not divide.
    """
    shapes, logical = abstract_params(config)
    shardings = named_shardings(mesh, rules, logical, shapes)
    return laid_out(shapes, shardings), shardings


@lru_cache(maxsize=8)
def _abstract_boxes(config: ModelConfig):
    """Boxes of ShapeDtypeStructs; a search asks for the same ones thousands of times."""
    return jax.eval_shape(lambda: _init(config, jax.random.key(0)))


def _is_box(leaf) -> bool:
    return isinstance(leaf, nn.meta.AxisMetadata)


def encode_vision(params: Params, config: ModelConfig, vision: VisionInputs) -> jax.Array:
    """Features [M, D] of the merged tokens, in window order, M = N / merge².

    Of inputs in shards [S / parts, parts * M, D]: a block for each group of rows.
    """
    encode = partial(_apply, params, config, "encode_vision")
    if vision.pixels.ndim == 2:
        return encode(vision)
    features = jax.vmap(encode, spmd_axis_name=config.rules.media if config.rules else None)(vision)
    features = features.reshape(len(features) // vision.parts, -1, features.shape[-1])
    return constrain(features, config.rules, ("batch", None, None))


def forward(
    params: Params,
    config: ModelConfig,
    tokens: jax.Array,
    positions: jax.Array,
    segment_ids: jax.Array,
    visual_index: jax.Array | None = None,
    features: jax.Array | None = None,
    prefix: SharedPrefix | None = None,
) -> jax.Array:
    """Hidden states after the final norm.

    Args:
        tokens: int32 [B, L].
        positions: int32 [B, 3, L]: time, height and width of M-RoPE.
        segment_ids: int32 [B, L]: tokens attend to earlier tokens of the same number; 0 is padding.
        visual_index: int32 [B, L]: row of `features` that replaces the token's embedding, -1 for text.
        features: [M, D], from `encode_vision`; None for text alone. Of blocks [G, M, D] the first B / G rows of
            tokens take from the first, and so on.
        prefix: where every row holds a prompt and completions that attend to it and not to one another; all tokens
            but padding are of segment 1 then.

    Returns:
        [B, L, D] of the compute dtype; rows of padding hold finite values without meaning.
    """
    return _apply(params, config, "forward", tokens, positions, segment_ids, visual_index, features, prefix)


def read_prompts(
    params: Params,
    config: ModelConfig,
    tokens: jax.Array,
    positions: jax.Array,
    segment_ids: jax.Array,
    visual_index: jax.Array | None,
    features: jax.Array | None,
) -> tuple[jax.Array, Stores]:
    """`forward` of right-padded prompts, one segment a row, and the keys and values [B, H_kv, L, d] of every layer."""
    return _apply(params, config, "read", tokens, positions, segment_ids, visual_index, features)


def prefill(
    params: Params,
    config: ModelConfig,
    tokens: jax.Array,
    positions: jax.Array,
    segment_ids: jax.Array,
    visual_index: jax.Array | None,
    features: jax.Array | None,
    cache_length: int,
) -> tuple[jax.Array, KVCache]:
    """`read_prompts`, and a cache of `cache_length` ≥ L slots."""
    hidden, kept = read_prompts(params, config, tokens, positions, segment_ids, visual_index, features)
    return hidden, cache_from_prompt(*kept, segment_ids, cache_length)


def decode_step(
    params: Params, config: ModelConfig, tokens: jax.Array, positions: jax.Array, cache: KVCache | GroupCache
) -> tuple[jax.Array, KVCache | GroupCache]:
    """One more token a row: tokens int32 [B], positions int32 [B, 3] -> (hidden [B, D], cache).

    Rows of a GroupCache are its slots, those of the first prompt before those of the next. The caller keeps the
    `length` of a KVCache below its capacity: a write past the end would fall on the last slot.
    """
    return _apply(params, config, "decode_step", tokens, positions, cache)


def open_step(
    params: Params, config: ModelConfig, tokens: jax.Array, positions: jax.Array, cache: KVCache
) -> tuple[LastAttention, KVCache]:
    """The first part of `decode_step`, up to the attention of the last layer; `close_step` is the rest.

    Raises ConfigError for a GroupCache, which keeps a prompt's keys apart from those of its completions.
    """
    if not isinstance(cache, KVCache):
        raise ConfigError(
            f"the last layer cannot show its attention over a {type(cache).__name__}; decode over a KVCache, or "
            "without a decode-time controller"
        )
    return _apply(params, config, "open_step", tokens, positions, cache)


def close_step(params: Params, config: ModelConfig, inputs: jax.Array, mixed: jax.Array) -> jax.Array:
    """hidden [B, D] of `LastAttention.inputs` [B, D] and heads' outputs [B, H, head_dim], those it holds or others."""
    return _apply(params, config, "close_step", inputs, mixed)


def logits(params: Params, config: ModelConfig, hidden: jax.Array) -> jax.Array:
    """float32 [..., V] of hidden [..., D]."""
    return project(hidden.astype(config.dtype), output_head(params))


def token_log_probs(
    params: Params,
    config: ModelConfig,
    hidden: jax.Array,
    targets: jax.Array,
    tile: int = 512,
    mask: jax.Array | None = None,
    temperature: float = 1.0,
) -> jax.Array:
    """float32 [B, L]: log-probability of `targets` int32 [B, L] given hidden [B, L, D], at this temperature.

    A device holds the logits of `tile` of its tokens at a time.
    Tiles without a token of `mask` bool [B, L] are skipped; what the mask excludes may be 0 and has no gradient.
    """
    head = output_head(params)
    return tiled_log_probs(hidden.astype(config.dtype), head, targets, tile, mask, config.rules, temperature)


def best_words(
    params: Params,
    config: ModelConfig,
    hidden: jax.Array,
    targets: jax.Array,
    top_k: int,
    tile: int = 512,
    mask: jax.Array | None = None,
    temperature: float = 1.0,
    vocab: int | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """As `token_log_probs`, and what the model holds of its best words; see `log_probs.tiled_best_words`.

    With `vocab` the words are its first ones.
    """
    head = output_head(params)[:vocab]
    return tiled_best_words(hidden.astype(config.dtype), head, targets, tile, top_k, mask, config.rules, temperature)


def word_logits(
    params: Params, config: ModelConfig, hidden: jax.Array, words: jax.Array, tile: int, temperature: float = 1.0
) -> jax.Array:
    """float32 [B, L, K]: the logits of `words` int32 [B, L, K] alone, at this temperature."""
    return logits_at(hidden.astype(config.dtype), output_head(params), words, tile, temperature)


def output_head(params: Params) -> jax.Array:
    """The head [V, D], tied or not."""
    decoder = params["decoder"]
    return decoder["lm_head" if "lm_head" in decoder else "embed"]["embedding"]


def stack_layers(params: Params) -> Params:
    """From the unrolled tree to the scanned one: `layers_0`, `layers_1`, … become `layers` with a leading axis."""
    params = {name: dict(part) for name, part in params.items()}
    for part, prefix in _STACKS:
        blocks = [params[part].pop(f"{prefix}_{i}") for i in range(_count(params[part], prefix))]
        params[part][prefix] = jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)
    return params


def unstack_layers(params: Params) -> Params:
    """The inverse of `stack_layers`."""
    params = {name: dict(part) for name, part in params.items()}
    for part, prefix in _STACKS:
        stacked = params[part].pop(prefix)
        for i in range(len(jax.tree.leaves(stacked)[0])):
            params[part][f"{prefix}_{i}"] = jax.tree.map(lambda leaf, i=i: leaf[i], stacked)
    return params


def _count(tree, prefix):
    return sum(name.startswith(f"{prefix}_") for name in tree)


def _apply(params, config, method, *arguments):
    return Qwen2_5VL(config).apply({"params": params}, *arguments, method=method)
