"""Bytes of the model's activations on one device, counted from the sizes of its layers' arrays.

With D the width, H and K those of query heads and of key heads, F that of the MLP (H, K, F as one device splits them),
c the bytes of a number in products and s those of the softmax's peak and total, a token of a decoder layer keeps for
the backward pass, by `config.remat`:

    none      16 D + 16 + c (4 D + 3 H + 2 K p + 3 F) + s    float32 inputs of norms; inputs of products, of attention
    minimal   c (2 D + 2 H + 2 K + 2 F) + s                   results of products and of attention
    dots      c (2 D + H + 2 K + 2 F)                         results of products
    full      c D                                             the layer's input
    offload   0                                               the same in the memory of the host

p is 1 for a kernel; elsewhere each of the n pieces of a causal row keeps its own keys, (n + 1) / 2 in all. With cuDNN,
whose results cannot be kept, "minimal" is "dots".
A patch of a block of the tower keeps likewise 16 D + 16 + c (5 D + 3 F) + a, c (5 D + 2 F) + 2 g (c D + s),
c (5 D + 2 F), c D or 0; a, what attention keeps, is g times: 2 (4 c D + s), once for windows and once for frames, and a
byte of mask for each patch attended to. Groups are padded to g = 2 times the patches.
"""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh

from jvlmm.errors import ConfigError
from jvlmm.models.attention import causal_pieces, dense_queries
from jvlmm.models.config import ModelConfig
from jvlmm.models.log_probs import WORDS
from jvlmm.sharding.estimate import device_size
from jvlmm.sharding.rules import ShardingRules, split_count

_PADDED = 2  # groups of patches, see `vision_inputs.abstract_vision_inputs`


@dataclass(frozen=True)
class Share:
    """What one device computes of a batch, and how many devices split the widths of a layer."""

    rows: int
    length: int  # tokens of a row, of which the device computes its part
    context: int = 1  # devices that split a row
    patches: int = 0
    frame_patches: int = 0
    heads: int = 1  # devices that split query heads; likewise the others
    kv_heads: int = 1
    mlp: int = 1
    vision_heads: int = 1
    vision_mlp: int = 1
    vocab: int = 1

    @property
    def tokens(self) -> int:
        return self.rows * -(-self.length // self.context)


def share_of(batch: Any, mesh: Mesh | AbstractMesh, rules: ShardingRules, frame_patches: int) -> Share:
    """One device's part of a batch, with `tokens` and `vision`, that lies on `mesh`."""
    pixels = None if batch.vision is None else batch.vision.pixels
    axes = ("heads", "kv_heads", "mlp", "vision_heads", "vision_mlp", "vocab")
    return Share(
        rows=len(batch.tokens) // split_count(mesh, rules.batch),
        length=batch.tokens.shape[1],
        context=split_count(mesh, rules.length),
        patches=0 if pixels is None else device_size(pixels) // pixels.shape[-1],
        frame_patches=frame_patches,
        **{axis: split_count(mesh, getattr(rules, axis)) for axis in axes},
    )


def layer_bytes(config: ModelConfig, share: Share, remat: str, mlp_share: float = 1.0) -> float:
    """Bytes that the device's tokens keep in one decoder layer; `mlp_share` of them in its MLP."""
    text, c = config.text, jnp.dtype(config.dtype).itemsize
    d, f = text.hidden_size, mlp_share * text.intermediate_size / share.mlp
    h, k = d / share.heads, text.num_kv_heads * text.head_dim / share.kv_heads
    s = 8 * text.num_heads / share.heads
    copies = (causal_pieces(share.length) + 1) / 2 if config.attention == "xla" else 1
    dots = c * (2 * d + h + 2 * k + 2 * f)
    kept = {
        "none": 16 * d + 16 + c * (4 * d + 3 * h + 2 * k * copies + 3 * f) + s,
        "minimal": dots if config.attention == "cudnn" else dots + c * h + s,
        "dots": dots,
        "full": c * d,
        "offload": 0,
    }
    return share.tokens * _of(kept, remat)


def block_bytes(config: ModelConfig, share: Share, remat: str) -> float:
    """Bytes that the device's patches keep in one block of the tower."""
    vision, c = config.vision, jnp.dtype(config.dtype).itemsize
    d, f = vision.hidden_size, vision.intermediate_size / share.vision_mlp
    window = (vision.window_size // vision.patch_size) ** 2
    s = 8 * vision.num_heads / share.vision_heads
    attention = _PADDED * (2 * (4 * c * d / share.vision_heads + s) + window + share.frame_patches)
    products = c * (2 * d + 3 * d / share.vision_heads + 2 * f)
    kept = {
        "none": 16 * d + 16 + c * (5 * d + 3 * f) + attention,
        "minimal": products + _PADDED * 2 * (c * d / share.vision_heads + s),
        "dots": products,
        "full": c * d,
        "offload": 0,
    }
    return share.patches * _of(kept, remat)


def merger_bytes(config: ModelConfig, share: Share) -> float:
    """Bytes that the device's patches keep in the merger: 8 D + 6 c D a patch."""
    return share.patches * config.vision.hidden_size * (8 + 6 * jnp.dtype(config.dtype).itemsize)


def feature_bytes(config: ModelConfig, share: Share) -> float:
    """Bytes of the device's visual features."""
    merged = share.patches / config.vision.spatial_merge_size**2
    return merged * config.text.hidden_size * jnp.dtype(config.dtype).itemsize


def head_bytes(config: ModelConfig, share: Share, tile: int) -> float:
    """Bytes of the head and its gradient: a tile of words and `tile` tokens' logits on it, and every hidden state's."""
    text, c = config.text, jnp.dtype(config.dtype).itemsize
    words = min(WORDS, text.vocab_size) / share.vocab
    return words * (text.hidden_size * (c + 4) + tile * (4 + 4 + c)) + 4 * share.tokens * text.hidden_size


def score_bytes(config: ModelConfig, share: Share) -> float:
    """Bytes of the decoder's attention scores and weights, float32, that exist at one time; none in a kernel."""
    if config.attention != "xla":
        return 0.0
    queries = min(-(-share.length // causal_pieces(share.length)), dense_queries(share.length))
    return 2 * 4.0 * share.rows * config.text.num_heads / share.heads * queries * share.length


def forward_bytes(config: ModelConfig, share: Share) -> float:
    """Bytes the device's tokens need for a moment in one decoder layer that keeps nothing."""
    text, c = config.text, jnp.dtype(config.dtype).itemsize
    attention = 2 * text.hidden_size / share.heads + 2 * text.num_kv_heads * text.head_dim / share.kv_heads
    widest = max(attention, 2 * text.intermediate_size / share.mlp)
    return share.tokens * c * (2 * text.hidden_size + widest) + score_bytes(config, share)


def tower_forward_bytes(config: ModelConfig, share: Share) -> float:
    """Bytes the device's patches need for a moment in one block that keeps nothing."""
    vision, c = config.vision, jnp.dtype(config.dtype).itemsize
    attention = (3 + 4 * _PADDED) * vision.hidden_size / share.vision_heads
    widest = max(attention, 2 * vision.intermediate_size / share.vision_mlp)
    return share.patches * c * (2 * vision.hidden_size + widest)


def _of(kept: dict[str, float], remat: str) -> float:
    if remat not in kept:
        raise ConfigError(f"remat = {remat!r}: there are formulas for {', '.join(kept)}; choose one of them")
    return kept[remat]
