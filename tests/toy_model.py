"""A small model for tests that compute, and the mark of tests that need eight devices."""

import jax
import pytest

from jvlmm.models.config import ModelConfig, SpecialTokens, TextConfig, VisionConfig

CONFIG = ModelConfig(
    vision=VisionConfig(
        depth=2, hidden_size=32, num_heads=2, intermediate_size=48, out_hidden_size=64, fullatt_block_indexes=(1,)
    ),
    text=TextConfig(
        vocab_size=96,
        hidden_size=64,
        intermediate_size=80,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        mrope_section=(2, 3, 3),
        tie_word_embeddings=False,
    ),
    tokens=SpecialTokens(image=90, video=91, vision_start=92, vision_end=93, eos=(94,), pad=95),
)
needs_eight = pytest.mark.skipif(
    jax.device_count() < 8, reason=f"needs 8 (simulated) devices, there are {jax.device_count()}"
)
