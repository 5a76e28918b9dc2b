"""Checkpoints of transformers in, checkpoints for transformers out, in every layout."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from jvlmm.models import qwen2_5_vl
from jvlmm.models.config import VisionConfig
from jvlmm.models.huggingface import load_config, load_params, save_checkpoint
from jvlmm.models.vision_inputs import build_vision_inputs

torch = pytest.importorskip("torch", reason="torch is not installed: parity with transformers is not tested")
transformers = pytest.importorskip("transformers")

GRID = (2, 4, 6)  # of one video; (4 / 2) * (6 / 2) * 2 = 12 visual tokens


def make_reference(tied: bool):
    """A small random model of transformers whose every parameter matters (norms and biases are random too)."""
    torch.manual_seed(0)
    config = transformers.Qwen2_5_VLConfig(
        text_config={
            "vocab_size": 96,
            "hidden_size": 64,
            "intermediate_size": 80,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 5e5, "mrope_section": [2, 3, 3]},
            "bos_token_id": 80,
            "eos_token_id": 81,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "out_hidden_size": 64,
            "fullatt_block_indexes": [1],
            "tokens_per_second": 2,
        },
        image_token_id=90,
        video_token_id=91,
        vision_start_token_id=92,
        vision_end_token_id=93,
        tie_word_embeddings=tied,
    )
    model = transformers.Qwen2_5_VLForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2 + (parameter.dim() == 1))
    return model


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def reference(request, tmp_path_factory):
    """(model, its folder in the hub's key names, as transformers saves it)."""
    model = make_reference(request.param)
    folder = tmp_path_factory.mktemp("reference")
    model.save_pretrained(folder)
    return model, folder


def visual_inputs():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (int(np.prod(GRID)), 1176), np.uint8)
    tokens = np.concatenate([[1, 92], np.full(12, 91), [93, 5, 7, 9]])[None].astype(np.int32)
    return pixels, tokens


def their_logits(model) -> np.ndarray:
    """float32 [L, V] of one row with a video."""
    pixels, tokens = visual_inputs()
    mean, std = (np.reshape(x, (1, 3, 1)) for x in (VisionConfig.image_mean, VisionConfig.image_std))
    scaled = (pixels.reshape(-1, 3, 392) / 255 - mean) / std
    with torch.no_grad():
        outputs = model(
            input_ids=torch.tensor(tokens, dtype=torch.long),
            position_ids=torch.tensor(positions(), dtype=torch.long).transpose(0, 1),
            pixel_values_videos=torch.tensor(scaled.reshape(len(pixels), -1), dtype=torch.float32),
            video_grid_thw=torch.tensor([GRID]),
        )
    return outputs.logits[0].float().numpy()


def positions() -> np.ndarray:
    """Arbitrary but distinct M-RoPE positions int32 [1, 3, L]; both models are given the same."""
    length = visual_inputs()[1].shape[1]
    return np.stack([np.arange(length), np.arange(length) // 2, np.arange(length) * 2])[None].astype(np.int32)


def our_logits(params, config) -> np.ndarray:
    pixels, tokens = visual_inputs()
    vision, (rows,) = build_vision_inputs([pixels], [GRID], config.vision)
    visual_index = np.full(tokens.shape, -1, np.int32)
    visual_index[tokens == config.tokens.video] = rows

    return np.asarray(all_logits(params, config, vision, tokens, positions(), visual_index))[0]


@partial(jax.jit, static_argnums=1)
def all_logits(params, config, vision, tokens, positions, visual_index):
    features = qwen2_5_vl.encode_vision(params, config, vision)
    segments = jnp.ones(tokens.shape, jnp.int32)
    hidden = qwen2_5_vl.forward(params, config, tokens, positions, segments, visual_index, features)
    return qwen2_5_vl.logits(params, config, hidden)


@pytest.mark.parametrize("scan_layers", [False, True], ids=["unrolled", "scanned"])
def test_logits_of_a_transformers_checkpoint(reference, scan_layers):
    model, folder = reference
    config = dataclasses.replace(load_config(folder), scan_layers=scan_layers)
    np.testing.assert_allclose(our_logits(load_params(folder, config), config), their_logits(model), atol=1e-4)


@pytest.mark.parametrize("scan_layers", [False, True], ids=["unrolled", "scanned"])
def test_what_transformers_saved_comes_back_bit_for_bit(reference, scan_layers, tmp_path):
    _, folder = reference
    config = dataclasses.replace(load_config(folder), scan_layers=scan_layers)
    save_checkpoint(tmp_path / "out", load_params(folder, config), config, dtype="float32", source_dir=folder)
    ours, theirs = load_file(tmp_path / "out/model.safetensors"), load_file(folder / "model.safetensors")
    assert set(ours) == set(theirs)
    for key, value in theirs.items():
        np.testing.assert_array_equal(ours[key], value, err_msg=key)
    assert load_config(tmp_path / "out") == load_config(folder)


@pytest.mark.parametrize("max_shard_bytes", [10**9, 60_000], ids=["single", "sharded"])
def test_export_opens_in_transformers_with_identical_logits(reference, max_shard_bytes, tmp_path):
    _, folder = reference
    config = load_config(folder)
    params = jax.tree.map(lambda leaf: leaf[::-1], load_params(folder, config))
    save_checkpoint(tmp_path / "out", params, config, dtype="float32", max_shard_bytes=max_shard_bytes)
    assert (tmp_path / "out/model.safetensors.index.json").exists() == (max_shard_bytes < 10**9)
    model, info = transformers.AutoModelForImageTextToText.from_pretrained(
        tmp_path / "out", output_loading_info=True, dtype=torch.float32
    )
    assert isinstance(model, transformers.Qwen2_5_VLForConditionalGeneration)
    assert not any(info.values()), info
    assert model.config.tie_word_embeddings == config.text.tie_word_embeddings
    assert model.generation_config.eos_token_id == list(config.tokens.eos)
    np.testing.assert_allclose(our_logits(params, config), their_logits(model.eval()), atol=1e-4)
