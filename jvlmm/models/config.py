"""Shape and execution options of a Qwen2.5-VL model."""

from dataclasses import dataclass
from typing import Literal

from jvlmm.models.remat import Remat
from jvlmm.sharding.rules import ShardingRules


@dataclass(frozen=True)
class VisionConfig:
    """The vision tower. Sizes of windows and patches are in pixels."""

    depth: int = 32
    hidden_size: int = 1280
    num_heads: int = 16
    intermediate_size: int = 3420
    out_hidden_size: int = 3584
    patch_size: int = 14
    temporal_patch_size: int = 2
    spatial_merge_size: int = 2
    window_size: int = 112
    fullatt_block_indexes: tuple[int, ...] = (7, 15, 23, 31)
    in_channels: int = 3
    tokens_per_second: float = 2
    image_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def patch_dim(self) -> int:
        return self.in_channels * self.temporal_patch_size * self.patch_size**2


@dataclass(frozen=True)
class TextConfig:
    """The decoder."""

    vocab_size: int = 152064
    hidden_size: int = 3584
    intermediate_size: int = 18944
    num_layers: int = 28
    num_heads: int = 28
    num_kv_heads: int = 4
    rope_theta: float = 1e6
    mrope_section: tuple[int, int, int] = (16, 24, 24)
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    max_position_embeddings: int = 128000

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads


@dataclass(frozen=True)
class SpecialTokens:
    """Ids the model and the host must agree on."""

    image: int = 151655
    video: int = 151656
    vision_start: int = 151652
    vision_end: int = 151653
    eos: tuple[int, ...] = (151645, 151643)
    pad: int = 151643


@dataclass(frozen=True)
class ModelConfig:
    """A whole model: its shape, and how it is executed.

    `scan_layers` stores each block's parameters stacked over layers and scans over them, which keeps
    compilation short on TPU and GPU; on CPU the scan copies weights, so layers are unrolled there.
    `flatten_tokens` multiplies [tokens, D] by each kernel instead of [B, L, D]: faster gradients on CPU, but a
    length axis split over devices would have to be gathered. `rules` say how activations lie on a mesh; None leaves
    that to the compiler.
    """

    vision: VisionConfig = VisionConfig()
    text: TextConfig = TextConfig()
    tokens: SpecialTokens = SpecialTokens()
    scan_layers: bool = False
    flatten_tokens: bool = False
    dtype: Literal["float32", "bfloat16"] = "float32"  # of matrix products
    param_dtype: Literal["float32", "bfloat16"] = "float32"
    remat: Remat = "none"  # see `models.remat`
    mlp_tile: int | None = None  # tokens of a device whose hidden units the decoder's MLP keeps at a time; None: all
    mlp_parts: int = 1  # of those hidden units, computed one after the other where there are tiles
    attention: Literal["xla", "splash", "cudnn"] = "xla"
    rules: ShardingRules | None = None

    @property
    def coordinates(self) -> Literal["shown", "per-mille"]:
        """Of the boxes that this family answers: pixels of the resized picture (Qwen2-VL and Qwen3-VL: per mille)."""
        return "shown"
