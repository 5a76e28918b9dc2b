"""The sizes of Qwen2.5-VL, and two small ones of our own."""

from jvlmm.models.config import ModelConfig, SpecialTokens, TextConfig, VisionConfig


def _released(
    hidden_size: int,
    num_layers: int,
    num_heads: int,
    num_kv_heads: int,
    intermediate_size: int,
    vision_intermediate_size: int = 3420,
    vocab_size: int = 152064,
    tied: bool = False,
) -> ModelConfig:
    """A released size, executed as an accelerator wants it."""
    return ModelConfig(
        vision=VisionConfig(intermediate_size=vision_intermediate_size, out_hidden_size=hidden_size),
        text=TextConfig(
            vocab_size=vocab_size,
            hidden_size=hidden_size,
            intermediate_size=intermediate_size,
            num_layers=num_layers,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            tie_word_embeddings=tied,
        ),
        scan_layers=True,
        dtype="bfloat16",
        remat="full",
    )


def _special_tokens(vocab_size: int) -> SpecialTokens:
    """The last ids of a small vocabulary; a tokenizer's own ids take their place."""
    last = vocab_size - 1
    return SpecialTokens(
        image=last, video=last - 1, vision_start=last - 2, vision_end=last - 3, eos=(last - 4, last - 5), pad=last - 5
    )


TINY = ModelConfig(
    vision=VisionConfig(
        depth=4,
        hidden_size=128,
        num_heads=4,
        intermediate_size=256,
        out_hidden_size=160,
        window_size=112,
        fullatt_block_indexes=(1, 3),
    ),
    text=TextConfig(
        vocab_size=1024,
        hidden_size=160,
        intermediate_size=448,
        num_layers=5,
        num_heads=4,
        num_kv_heads=2,
        rope_theta=1e4,
        mrope_section=(4, 8, 8),
        tie_word_embeddings=True,
    ),
    tokens=_special_tokens(1024),
)

SMALL = ModelConfig(
    vision=VisionConfig(
        depth=8,
        hidden_size=384,
        num_heads=6,
        intermediate_size=1024,
        out_hidden_size=768,
        fullatt_block_indexes=(3, 7),
    ),
    text=TextConfig(
        vocab_size=32000,
        hidden_size=768,
        intermediate_size=2048,
        num_layers=12,
        num_heads=12,
        num_kv_heads=4,
        mrope_section=(8, 12, 12),
        tie_word_embeddings=True,
    ),
    tokens=_special_tokens(32000),
)

PRESETS: dict[str, ModelConfig] = {
    "tiny": TINY,
    "small": SMALL,
    "3b": _released(2048, 36, 16, 2, 11008, vocab_size=151936, tied=True),
    "7b": _released(3584, 28, 28, 4, 18944),
    "32b": _released(5120, 64, 40, 8, 27648, vision_intermediate_size=3456),
    "72b": _released(8192, 80, 64, 8, 29568, vision_intermediate_size=3456),
}

# Folder names of the released checkpoints.
RELEASED = {f"Qwen2.5-VL-{size.upper()}-Instruct": size for size in ("3b", "7b", "32b", "72b")}
