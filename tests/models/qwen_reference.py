"""The reference: transformers' Qwen2.5-VL with random weights, and batches both models understand."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jvlmm.models.config import ModelConfig, SpecialTokens, TextConfig, VisionConfig
from jvlmm.models.qwen2_5_vl import abstract_params
from jvlmm.models.vision_inputs import build_vision_inputs

VOCAB = 200
IMAGE, VIDEO = 190, 191
SECONDS_PER_GRID = 1.5


def small_config(tied: bool = True, **options) -> ModelConfig:
    """Windows of 4 x 4 patches, so that small grids already have several and uneven ones."""
    return ModelConfig(
        vision=VisionConfig(
            depth=2,
            hidden_size=48,
            num_heads=2,
            intermediate_size=80,
            out_hidden_size=64,
            window_size=56,
            fullatt_block_indexes=(1,),
        ),
        text=TextConfig(
            vocab_size=VOCAB,
            hidden_size=64,
            intermediate_size=112,
            num_layers=2,
            num_heads=4,
            num_kv_heads=2,
            mrope_section=(2, 3, 3),
            rope_theta=1e4,
            tie_word_embeddings=tied,
        ),
        tokens=SpecialTokens(image=IMAGE, video=VIDEO, vision_start=192, vision_end=193, eos=(194,), pad=195),
        **options,
    )


@dataclass(frozen=True)
class Visual:
    """One image or video of a row."""

    kind: str  # "image" or "video"
    grid: tuple[int, int, int]


@dataclass(frozen=True)
class MixedBatch:
    """Right-padded rows, and the patches of all their media in order of appearance."""

    tokens: np.ndarray  # int32 [B, L]
    segment_ids: np.ndarray  # int32 [B, L]
    visual_index: np.ndarray  # int32 [B, L], into the features of `vision_inputs`
    visuals: tuple[Visual, ...]
    pixels: tuple[np.ndarray, ...]  # uint8 [n, 1176] each

    def vision_inputs(self, config, **options):
        return build_vision_inputs(self.pixels, [v.grid for v in self.visuals], config.vision, **options)[0]


def make_batch(config: ModelConfig, rows, seed: int = 0, pad_to: int = 0) -> MixedBatch:
    """Rows are lists of text lengths and Visuals, e.g. [5, Visual("image", (1, 4, 6)), 7]."""
    rng = np.random.default_rng(seed)
    visuals = tuple(part for row in rows for part in row if isinstance(part, Visual))
    pixels = tuple(rng.integers(0, 256, (np.prod(v.grid), config.vision.patch_dim), dtype=np.uint8) for v in visuals)
    _, row_maps = build_vision_inputs(pixels, [v.grid for v in visuals], config.vision)
    maps = iter(row_maps)
    made = []
    for row in rows:
        tokens, index = [], []
        for part in row:
            if isinstance(part, Visual):
                features = next(maps)
                placeholder = IMAGE if part.kind == "image" else VIDEO
                tokens += [192, *[placeholder] * len(features), 193]
                index += [-1, *features, -1]
            else:
                tokens += rng.integers(0, IMAGE, part).tolist()
                index += [-1] * part
        made.append((tokens, index))
    length = max(pad_to, max(len(tokens) for tokens, _ in made))
    batch = np.full((len(rows), length), config.tokens.pad, np.int32), np.zeros((len(rows), length), np.int32)
    visual_index = np.full((len(rows), length), -1, np.int32)
    for i, (tokens, index) in enumerate(made):
        batch[0][i, : len(tokens)], batch[1][i, : len(tokens)] = tokens, 1
        visual_index[i, : len(tokens)] = index
    return MixedBatch(*batch, visual_index, visuals, pixels)


def random_params(config: ModelConfig, seed: int = 0) -> dict:
    """Our parameter tree filled with NumPy noise, norms around 1: nothing needs to be compiled."""
    rng = np.random.default_rng(seed)
    shapes, _ = abstract_params(config)

    def fill(path, leaf):
        noise = 0.1 * rng.normal(size=leaf.shape)
        return jnp.asarray(noise + (path[-1].key == "scale"), leaf.dtype)

    return jax.tree_util.tree_map_with_path(fill, shapes)


def torch_model(config: ModelConfig, seed: int = 0):
    """transformers' model with random weights of every kind, biases and norms included."""
    import torch
    import transformers

    torch.set_num_threads(1)  # at this size threads only wait for each other
    vision, text = config.vision, config.text
    settings = transformers.Qwen2_5_VLConfig(
        text_config={
            "vocab_size": text.vocab_size,
            "hidden_size": text.hidden_size,
            "intermediate_size": text.intermediate_size,
            "num_hidden_layers": text.num_layers,
            "num_attention_heads": text.num_heads,
            "num_key_value_heads": text.num_kv_heads,
            "rms_norm_eps": text.rms_norm_eps,
            "bos_token_id": None,
            "eos_token_id": None,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": text.rope_theta,
                "mrope_section": list(text.mrope_section),
            },
        },
        vision_config={
            "depth": vision.depth,
            "hidden_size": vision.hidden_size,
            "num_heads": vision.num_heads,
            "intermediate_size": vision.intermediate_size,
            "out_hidden_size": vision.out_hidden_size,
            "window_size": vision.window_size,
            "fullatt_block_indexes": list(vision.fullatt_block_indexes),
            "tokens_per_second": vision.tokens_per_second,
        },
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        tie_word_embeddings=text.tie_word_embeddings,
    )
    settings._attn_implementation = "eager"
    model = transformers.Qwen2_5_VLForConditionalGeneration(settings).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_norm = "norm" in name or "ln_q" in name
            scale = 0.1 if "embed_tokens" in name or "bias" in name else 0.15
            parameter.copy_(1 + 0.1 * noise if is_norm else scale * noise)
    return model


def torch_inputs(model, config: ModelConfig, batch: MixedBatch, rows=slice(None), visuals=slice(None)) -> dict:
    """Keyword arguments of transformers' forward for some rows (and their visuals)."""
    import torch

    tokens = torch.from_numpy(batch.tokens[rows].astype(np.int64))
    mask = torch.from_numpy(batch.segment_ids[rows].astype(np.int64))
    inputs = {
        "input_ids": tokens,
        "attention_mask": mask,
        "mm_token_type_ids": (tokens == IMAGE).int() + 2 * (tokens == VIDEO).int(),
    }
    per_channel = config.vision.patch_dim // 3
    mean, std = (np.repeat(np.float32(x), per_channel) for x in (config.vision.image_mean, config.vision.image_std))
    for kind, pixels_name in (("image", "pixel_values"), ("video", "pixel_values_videos")):
        media = zip(batch.visuals[visuals], batch.pixels[visuals], strict=True)
        chosen = [(visual.grid, pixels) for visual, pixels in media if visual.kind == kind]
        if chosen:
            pixels = np.concatenate([p for _, p in chosen]).astype(np.float32) / 255
            inputs[pixels_name] = torch.from_numpy((pixels - mean) / std)
            inputs[f"{kind}_grid_thw"] = torch.tensor([grid for grid, _ in chosen])
    if "video_grid_thw" in inputs:
        inputs["second_per_grid_ts"] = torch.full((len(inputs["video_grid_thw"]),), SECONDS_PER_GRID)
    return inputs


def rope_positions(model, inputs: dict) -> tuple[np.ndarray, np.ndarray]:
    """transformers' positions int32 [B, 3, L], and where `generate` puts each row's next token, int32 [B].

    That is one after the last token: it appends `position_ids[..., -1:] + 1`, and never uses the deltas.
    """
    grids = {k: inputs[k] for k in ("image_grid_thw", "video_grid_thw", "second_per_grid_ts") if k in inputs}
    positions, _ = model.model.get_rope_index(
        inputs["input_ids"], inputs["mm_token_type_ids"], attention_mask=inputs["attention_mask"], **grids
    )
    positions = positions.permute(1, 0, 2).numpy().astype(np.int32)
    last = inputs["attention_mask"].sum(-1).numpy() - 1
    return positions, positions[np.arange(len(last)), 0, last] + 1


def params_from_torch(tensors: dict, config: ModelConfig) -> dict:
    """Our parameter tree from tensors named as in transformers' model (weights or gradients)."""
    text, vision = config.text, config.vision

    def get(name, *shape):
        """A tensor as [inputs, outputs], then of `shape`."""
        array = tensors[name].detach().numpy()
        if name.endswith("weight") and array.ndim == 2 and "embed_tokens" not in name and "lm_head" not in name:
            array = array.T
        return jnp.asarray(array.reshape(shape) if shape else array)

    def dense(name, kernel=(), bias=None):
        made = {"kernel": get(f"{name}.weight", *kernel)}
        if f"{name}.bias" in tensors:
            made["bias"] = get(f"{name}.bias", *(kernel[1:] if bias is None else bias))
        return made

    def block(prefix):
        heads = (vision.num_heads, vision.head_dim)
        return {
            "norm1": {"scale": get(f"{prefix}.norm1.weight")},
            "norm2": {"scale": get(f"{prefix}.norm2.weight")},
            "attn": {
                "qkv": dense(f"{prefix}.attn.qkv", (vision.hidden_size, 3, *heads)),
                "proj": dense(f"{prefix}.attn.proj", (*heads, vision.hidden_size), bias=()),
            },
            "mlp": {name: dense(f"{prefix}.mlp.{name}") for name in ("gate_proj", "up_proj", "down_proj")},
        }

    def layer(prefix):
        width = text.hidden_size
        shapes = {
            "q_proj": (width, text.num_heads, text.head_dim),
            "k_proj": (width, text.num_kv_heads, text.head_dim),
            "v_proj": (width, text.num_kv_heads, text.head_dim),
            "o_proj": (text.num_heads, text.head_dim, width),
        }
        return {
            "input_layernorm": {"scale": get(f"{prefix}.input_layernorm.weight")},
            "post_attention_layernorm": {"scale": get(f"{prefix}.post_attention_layernorm.weight")},
            "self_attn": {name: dense(f"{prefix}.self_attn.{name}", shape) for name, shape in shapes.items()},
            "mlp": {name: dense(f"{prefix}.mlp.{name}") for name in ("gate_proj", "up_proj", "down_proj")},
        }

    visual, language = "model.visual", "model.language_model"
    patch = tensors[f"{visual}.patch_embed.proj.weight"].detach().numpy()
    decoder = {
        "embed": {"embedding": get(f"{language}.embed_tokens.weight")},
        "norm": {"scale": get(f"{language}.norm.weight")},
        **{f"layers_{i}": layer(f"{language}.layers.{i}") for i in range(text.num_layers)},
    }
    if not text.tie_word_embeddings:
        decoder["lm_head"] = {"embedding": get("lm_head.weight")}
    return {
        "vision": {
            "patch_embed": {"kernel": jnp.asarray(patch.reshape(len(patch), -1).T)},
            **{f"blocks_{i}": block(f"{visual}.blocks.{i}") for i in range(vision.depth)},
        },
        "merger": {
            "ln_q": {"scale": get(f"{visual}.merger.ln_q.weight")},
            "fc1": dense(f"{visual}.merger.mlp.0"),
            "fc2": dense(f"{visual}.merger.mlp.2"),
        },
        "decoder": decoder,
    }
