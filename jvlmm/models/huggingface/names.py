"""One table of what each parameter is called in a Hugging Face checkpoint and how it lies there, used both ways."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from jvlmm.models.config import ModelConfig

# Modules of the hub's files, whose names are the canonical ones here -> those of transformers 5.
_MODULES = (("visual.", "model.visual."), ("model.", "model.language_model."))
# What wraps a model and shows in the names of its tensors: torch.compile, DataParallel, FSDP, activation checkpoints.
_WRAPPERS = frozenset(("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"))
_OF_PEFT = ["base_model", "model"]
_INSIDE = ("model", "language_model", "visual", "lm_head")  # what a model's own `model.` may stand before
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
_DERIVED = re.compile(r"(^|\.)(rotary_emb|rotary_pos_emb)\.inv_freq$")  # buffers that old files carry


@dataclass(frozen=True)
class Tensor:
    """One tensor of a checkpoint and the parameter, or the row of a stacked parameter, it is.

    A checkpoint stores a projection as [outputs, *inputs], flattened to [prod(outputs), prod(inputs)]; the
    parameter is [*inputs, *outputs]. With `inputs` = 0 the two differ by a reshape only.
    """

    path: str  # in the parameter tree, dotted
    key: str  # canonical: the hub's
    shape: tuple[int, ...]  # of the parameter, or of one of its rows
    stored_shape: tuple[int, ...]
    inputs: int  # leading axes of the parameter that are inputs of a projection
    row: int | None = None  # on the leading axis of a stacked parameter

    def stored_slices(self, index: tuple[slice, ...]) -> tuple[slice, ...]:
        """The smallest leading block, by rows and columns, of the stored tensor that holds `index` of the parameter."""
        rows = _span(self.shape[self.inputs :], index[self.inputs :])
        if self.inputs and len(self.stored_shape) == 2:
            return rows, _span(self.shape[: self.inputs], index[: self.inputs])
        if not self.inputs and self.shape == self.stored_shape:
            return index
        return (rows,)

    def from_stored(self, block: np.ndarray, index: tuple[slice, ...]) -> np.ndarray:
        """`index` of the parameter, given the block that `stored_slices(index)` cut out."""
        if not self.inputs and self.shape == self.stored_shape:
            return block
        outer, outer_rest = _unfold(self.shape[self.inputs :], index[self.inputs :])
        if not self.inputs:
            return block.reshape(outer)[outer_rest]
        first, columns = self.inputs, self.shape[: self.inputs]
        block = block.reshape(block.shape[0], -1)
        if len(self.stored_shape) != 2:  # a convolution: its inputs were not cut
            block = block[:, _span(columns, index[:first])]
        inner, inner_rest = _unfold(columns, index[:first])
        return block.T.reshape(*inner, *outer)[(*inner_rest, *outer_rest)]

    def layer(self, param: Any) -> Any:
        """What belongs to this tensor of an array that is laid out as the parameter."""
        return param if self.row is None else param[self.row]

    def to_stored(self, array: np.ndarray) -> np.ndarray:
        """The tensor to write for the parameter (or row) `array`; contiguous."""
        if self.inputs:
            array = array.reshape(math.prod(self.shape[: self.inputs]), -1).T
        return np.ascontiguousarray(array).reshape(self.stored_shape)


def canonical_key(key: str) -> str:
    """Returns the hub's name of a tensor in any naming: transformers 4.49 to 5, and what wrappers put before it.

    `language_model.layers…`, `model.language_model.layers…` and `base_model.model.module.model.layers…` are all
    `model.layers…`.
    """
    parts = [part for part in key.split(".") if part not in _WRAPPERS]
    while parts[:2] == _OF_PEFT:
        parts = parts[2:]
    while len(parts) > 2 and parts[0] == "model" and parts[1] in _INSIDE:
        parts = parts[1:]
    if parts and parts[0] == "language_model":
        parts = parts[1:] if parts[1:2] == ["model"] else ["model", *parts[1:]]
    return ".".join(parts)


def module_name(tensor: Tensor) -> str:
    """The module of transformers 5 that holds this tensor as its weight or bias."""
    module, _, _ = tensor.key.rpartition(".")
    for prefix, renamed in _MODULES:
        if module.startswith(prefix):
            return renamed + module.removeprefix(prefix)
    return module


def is_redundant(key: str, config: ModelConfig) -> bool:
    """Whether a checkpoint may hold this canonical key although the model has no such parameter."""
    return bool(_DERIVED.search(key)) or (key == HEAD and config.text.tie_word_embeddings)


def checkpoint_tensors(config: ModelConfig) -> Iterator[Tensor]:
    """Every tensor of a checkpoint of this shape, in the order of the model."""
    yield from _vision_tensors(config)
    yield from _decoder_tensors(config)


def _vision_tensors(config: ModelConfig) -> Iterator[Tensor]:
    vision = config.vision
    width, heads = vision.hidden_size, (vision.num_heads, vision.head_dim)
    kernel = (width, vision.in_channels, vision.temporal_patch_size, vision.patch_size, vision.patch_size)
    patch_embed = ("vision.patch_embed.kernel", "visual.patch_embed.proj.weight")
    yield Tensor(*patch_embed, (vision.patch_dim, width), kernel, inputs=1)
    block = [
        *_vector("norm1.scale", "norm1.weight", width),
        *_linear("attn.qkv", "attn.qkv", (width,), (3, *heads)),
        *_linear("attn.proj", "attn.proj", heads, (width,)),
        *_vector("norm2.scale", "norm2.weight", width),
        *_gated_mlp(width, vision.intermediate_size, bias=True),
    ]
    yield from _repeat(block, "vision.blocks", "visual.blocks", vision.depth, config.scan_layers)
    merged = width * vision.spatial_merge_size**2
    yield from _vector("merger.ln_q.scale", "visual.merger.ln_q.weight", width)
    yield from _linear("merger.fc1", "visual.merger.mlp.0", (merged,), (merged,))
    yield from _linear("merger.fc2", "visual.merger.mlp.2", (merged,), (vision.out_hidden_size,))


def _decoder_tensors(config: ModelConfig) -> Iterator[Tensor]:
    text = config.text
    width, heads, kv_heads = text.hidden_size, (text.num_heads, text.head_dim), (text.num_kv_heads, text.head_dim)
    table = (text.vocab_size, width)
    yield Tensor("decoder.embed.embedding", EMBEDDING, table, table, inputs=0)
    layer = [
        *_vector("input_layernorm.scale", "input_layernorm.weight", width),
        *_linear("self_attn.q_proj", "self_attn.q_proj", (width,), heads),
        *_linear("self_attn.k_proj", "self_attn.k_proj", (width,), kv_heads),
        *_linear("self_attn.v_proj", "self_attn.v_proj", (width,), kv_heads),
        *_linear("self_attn.o_proj", "self_attn.o_proj", heads, (width,), bias=False),
        *_vector("post_attention_layernorm.scale", "post_attention_layernorm.weight", width),
        *_gated_mlp(width, text.intermediate_size, bias=False),
    ]
    yield from _repeat(layer, "decoder.layers", "model.layers", text.num_layers, config.scan_layers)
    yield from _vector("decoder.norm.scale", "model.norm.weight", width)
    if not text.tie_word_embeddings:
        yield Tensor("decoder.lm_head.embedding", HEAD, table, table, inputs=0)


def _vector(path: str, key: str, *shape: int) -> list[Tensor]:
    return [Tensor(path, key, shape, (math.prod(shape),), inputs=0)]


def _linear(path: str, key: str, inputs: tuple[int, ...], outputs: tuple[int, ...], bias: bool = True) -> list[Tensor]:
    stored = (math.prod(outputs), math.prod(inputs))
    kernel = Tensor(f"{path}.kernel", f"{key}.weight", (*inputs, *outputs), stored, len(inputs))
    return [kernel, *(_vector(f"{path}.bias", f"{key}.bias", *outputs) if bias else [])]


def _gated_mlp(width: int, hidden: int, bias: bool) -> list[Tensor]:
    return [
        *_linear("mlp.gate_proj", "mlp.gate_proj", (width,), (hidden,), bias),
        *_linear("mlp.up_proj", "mlp.up_proj", (width,), (hidden,), bias),
        *_linear("mlp.down_proj", "mlp.down_proj", (hidden,), (width,), bias),
    ]


def _repeat(block: list[Tensor], path: str, key: str, count: int, stacked: bool) -> Iterator[Tensor]:
    """The block's tensors for every layer: `path_0`, `path_1`, … or rows of one stacked tree at `path`."""
    for i in range(count):
        for t in block:
            where = f"{path}.{t.path}" if stacked else f"{path}_{i}.{t.path}"
            yield Tensor(where, f"{key}.{i}.{t.key}", t.shape, t.stored_shape, t.inputs, i if stacked else None)


def _span(shape: tuple[int, ...], index: tuple[slice, ...]) -> slice:
    """The range of the flattened axes that a cut along the first of them touches."""
    start, stop, _ = index[0].indices(shape[0])
    rest = math.prod(shape[1:])
    return slice(start * rest, stop * rest)


def _unfold(shape: tuple[int, ...], index: tuple[slice, ...]) -> tuple[tuple[int, ...], tuple[slice, ...]]:
    """Shape of a `_span` with its axes apart, and the cut that is left to do."""
    start, stop, _ = index[0].indices(shape[0])
    return (stop - start, *shape[1:]), (slice(None), *index[1:])
