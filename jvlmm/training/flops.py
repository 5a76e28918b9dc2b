"""Model FLOPs of a training step and of generation, counted analytically.

Only what the algorithm needs counts: padding, recomputation and masked halves of causal attention do
not. XLA's own analysis counts a scanned layer once and a padded token like any other.
"""

from typing import Any

import numpy as np

from jvlmm.models.config import ModelConfig, TextConfig, VisionConfig


def vision_flops(config: VisionConfig, patches: int, frame_patches: int) -> float:
    """FLOPs of one forward pass of tower and merger over `patches` patches in frames of `frame_patches`."""
    hidden, merged = config.hidden_size, config.hidden_size * config.spatial_merge_size**2
    block = 2 * (4 * hidden * hidden + 3 * hidden * config.intermediate_size)
    window = min((config.window_size // config.patch_size) ** 2, frame_patches)
    full = len(config.fullatt_block_indexes)
    attended = full * frame_patches + (config.depth - full) * window
    per_patch = 2 * config.patch_dim * hidden + config.depth * block + 4 * hidden * attended
    merger = 2 * merged * (merged + config.out_hidden_size) / config.spatial_merge_size**2
    return patches * (per_patch + merger)


def decoder_flops(config: TextConfig, lengths: np.ndarray) -> float:
    """FLOPs of one forward pass of the decoder and its head over causal sequences of `lengths` int [n] tokens."""
    heads, kv_heads = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    layer = 2 * config.hidden_size * (2 * heads + 2 * kv_heads + 3 * config.intermediate_size)
    lengths = np.asarray(lengths, np.float64)
    pairs = np.sum(lengths * (lengths + 1) / 2)
    layers = config.num_layers * (np.sum(lengths) * layer + 4 * heads * pairs)
    return float(layers + head_flops(config, np.sum(lengths)))


def head_flops(config: TextConfig, tokens: float) -> float:
    """FLOPs of the output head over so many tokens."""
    return 2.0 * config.hidden_size * config.vocab_size * tokens


def group_flops(config: TextConfig, prompt: int, completion: int, group: int) -> float:
    """FLOPs of one forward pass over a prompt and `group` completions of it; the head reads these alone."""
    whole, alone = (decoder_flops(config, [n]) - head_flops(config, n) for n in (prompt + completion, prompt))
    return alone + group * (whole - alone + head_flops(config, completion))


def prefill_flops(config: ModelConfig, lengths: np.ndarray, patches: int, frame_patches: int) -> float:
    """FLOPs of prompts of `lengths` int [n] with `patches` patches of media; the head reads each one's last token."""
    skipped = head_flops(config.text, np.sum(lengths) - len(lengths))
    tower = vision_flops(config.vision, patches, frame_patches) if patches else 0.0
    return decoder_flops(config.text, lengths) - skipped + tower


def decode_flops(config: ModelConfig, lengths: np.ndarray, tokens: int) -> float:
    """FLOPs of `tokens` more tokens after each prompt of `lengths` int [n]: what they add to longer sequences."""
    lengths = np.asarray(lengths)
    return decoder_flops(config.text, lengths + tokens) - decoder_flops(config.text, lengths)


def model_flops(config: ModelConfig, batch: Any, freeze: tuple[str, ...] = (), adapted: tuple[str, ...] = ()) -> float:
    """`update_flops` of a host `data.batch.Batch`."""
    patches = int(np.sum(batch.visual_index >= 0)) * config.vision.spatial_merge_size**2
    frame = batch.vision.frames.size if batch.vision is not None else 0
    return update_flops(config, segment_lengths(batch.segment_ids), patches, frame, freeze, adapted)


def update_flops(
    config: ModelConfig,
    lengths: np.ndarray,
    patches: int,
    frame_patches: int,
    freeze: tuple[str, ...] = (),
    adapted: tuple[str, ...] = (),
) -> float:
    """FLOPs of forward and backward pass over sequences of `lengths` int [n] tokens and `patches` patches of media.

    A backward pass costs twice the forward pass: once for activations, once for weights. A frozen decoder
    saves its weight gradients; a tower frozen together with its merger needs no backward pass at all, unless it is
    among the modules `adapted` by LoRA. The products of low rank themselves are left out.
    """
    decoder = decoder_flops(config.text, lengths) * (2 if "decoder" in freeze else 3)
    tower = vision_flops(config.vision, patches, frame_patches) if patches else 0.0
    return decoder + tower * (3 if "vision" not in freeze else 2 if "vision" in adapted else 1)


def recomputed_flops(
    config: ModelConfig,
    lengths: np.ndarray,
    patches: int,
    frame_patches: int,
    freeze: tuple[str, ...] = (),
    adapted: tuple[str, ...] = (),
) -> float:
    """FLOPs that an update repeats by `config.remat` and that do not count as the model's.

    "full" and "offload" run the forward pass of every layer again, "dots" (and "minimal" with cuDNN) that of its
    attention's pairs; the head's logits are computed again always.
    """
    text, total = config.text, float(np.sum(lengths))
    head = head_flops(text, total)
    pairs = float(np.sum(np.asarray(lengths, np.float64) * (np.asarray(lengths) + 1) / 2))
    match config.remat:
        case "full" | "offload":
            layers = decoder_flops(text, lengths) - head
            has_backward = patches and ("vision" not in freeze or "vision" in adapted)
            layers += vision_flops(config.vision, patches, frame_patches) if has_backward else 0.0
        case "minimal" if config.attention != "cudnn":
            layers = 0.0
        case "minimal" | "dots":
            layers = text.num_layers * 4 * text.num_heads * text.head_dim * pairs
        case _:
            layers = 0.0
    return head + layers


def segment_lengths(segment_ids: np.ndarray) -> np.ndarray:
    """Number of tokens of every sequence of segment_ids int32 [B, L], packed or not; 0 is padding."""
    rows, columns = np.nonzero(segment_ids)
    segments = segment_ids[rows, columns].astype(np.int64)
    keys = rows.astype(np.int64) * (int(segment_ids.max(initial=0)) + 1) + segments
    return np.unique(keys, return_counts=True)[1]
