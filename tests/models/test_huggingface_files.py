"""Layouts of files, keys, dtypes and configs; sharded reading; host memory. No torch is needed."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
import toy_model
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from toy_model import needs_eight

from jvlmm.models import qwen2_5_vl
from jvlmm.models.huggingface import load_config, load_params, save_checkpoint
from jvlmm.models.presets import PRESETS
from jvlmm.sharding.mesh import MeshOptions, make_mesh
from jvlmm.sharding.rules import ShardingRules, named_shardings

CONFIG = dataclasses.replace(
    toy_model.CONFIG,
    text=dataclasses.replace(toy_model.CONFIG.text, num_layers=3),
    tokens=dataclasses.replace(toy_model.CONFIG.tokens, eos=(94, 95)),
)


def random_params(config, seed=0):
    rng = np.random.default_rng(seed)
    shapes, _ = qwen2_5_vl.abstract_params(config)
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), shapes)


def assert_same(found, expected):
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), found, dict(expected))


def transformers_5_key(key: str) -> str:
    if key.startswith("model."):
        return key.replace("model.", "model.language_model.", 1)
    return f"model.{key}" if key.startswith("visual.") else key


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("max_shard_bytes", [10**9, 50_000], ids=["single", "sharded"])
def test_round_trip_keeps_every_bit(tmp_path, tied, max_shard_bytes):
    config = dataclasses.replace(CONFIG, text=dataclasses.replace(CONFIG.text, tie_word_embeddings=tied))
    params = random_params(config)
    save_checkpoint(tmp_path, params, config, dtype="float32", max_shard_bytes=max_shard_bytes)
    assert load_config(tmp_path) == config
    assert_same(load_params(tmp_path, config), params)
    sizes = [path.stat().st_size for path in tmp_path.glob("*.safetensors")]
    assert (len(sizes) > 5) == (max_shard_bytes == 50_000)


def test_keys_of_transformers_5_and_derived_buffers_are_read(tmp_path):
    params = random_params(CONFIG)
    save_checkpoint(tmp_path, params, CONFIG, dtype="float32")
    tensors = {transformers_5_key(k): v for k, v in load_file(tmp_path / "model.safetensors").items()}
    assert {"model.visual.merger.ln_q.weight", "model.language_model.norm.weight", "lm_head.weight"} <= set(tensors)
    tensors["model.language_model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(8, np.float32)
    save_file(tensors, tmp_path / "model.safetensors")
    assert_same(load_params(tmp_path, CONFIG), params)


def test_a_tied_checkpoint_may_repeat_the_head(tmp_path):
    config = dataclasses.replace(CONFIG, text=dataclasses.replace(CONFIG.text, tie_word_embeddings=True))
    params = random_params(config)
    save_checkpoint(tmp_path, params, config, dtype="float32")
    tensors = load_file(tmp_path / "model.safetensors")
    assert "lm_head.weight" not in tensors
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]}, tmp_path / "model.safetensors")
    assert_same(load_params(tmp_path, config), params)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("param_dtype", ["bfloat16", "float32"])
def test_dtypes_in_files_and_in_memory(tmp_path, dtype, param_dtype):
    params = random_params(CONFIG)
    save_checkpoint(tmp_path, params, CONFIG, dtype=dtype)
    with safe_open(tmp_path / "model.safetensors", "np") as file:
        assert {file.get_slice(key).get_dtype() for key in file.keys()} == {  # noqa: SIM118 - not a mapping
            {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}[dtype]
        }
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == dtype
    loaded = load_params(tmp_path, dataclasses.replace(CONFIG, param_dtype=param_dtype))
    stored = np.dtype(getattr(ml_dtypes, dtype, dtype))
    target = np.dtype(getattr(ml_dtypes, param_dtype, param_dtype))
    assert_same(loaded, jax.tree.map(lambda leaf: leaf.astype(stored).astype(target), params))


@needs_eight
@pytest.mark.parametrize("scan_layers", [False, True], ids=["unrolled", "scanned"])
@pytest.mark.parametrize("override", [{}, {"head_dim": ("tensor",), "heads": (), "kv_heads": (), "qkv": ()}])
def test_each_device_reads_its_own_slices(tmp_path, scan_layers, override):
    """Also where a trailing axis of a flattened pair (heads, head_dim) is the one that is split."""
    config = dataclasses.replace(CONFIG, scan_layers=scan_layers)
    params = random_params(config)
    save_checkpoint(tmp_path, params, config, dtype="float32", max_shard_bytes=50_000)
    mesh = make_mesh(MeshOptions(data=2, fsdp=2, tensor=2), jax.devices()[:8])
    shapes, logical = qwen2_5_vl.abstract_params(config)
    shardings = named_shardings(mesh, dataclasses.replace(ShardingRules(), **override), logical, shapes)
    loaded = load_params(tmp_path, config, shardings)
    assert jax.tree.all(jax.tree.map(lambda leaf, sharding: leaf.sharding == sharding, loaded, dict(shardings)))
    assert_same(loaded, params)
    save_checkpoint(tmp_path / "again", loaded, config, dtype="float32")
    assert_same(load_params(tmp_path / "again", config), params)


def test_source_files_and_earlier_files_are_kept(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "merges.txt", "chat_template.jinja", "notes.txt"):
        (source / name).write_text(name)
    (source / "preprocessor_config.json").write_text('{"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 1, 1]}')
    (source / "generation_config.json").write_text('{"temperature": 0.5, "eos_token_id": 1}')
    save_checkpoint(target, random_params(CONFIG), CONFIG, source_dir=source, max_shard_bytes=50_000)
    (target / "README.md").write_text("mine")
    params = random_params(CONFIG, seed=1)
    save_checkpoint(target, params, CONFIG, dtype="float32", source_dir=target)
    names = {path.name for path in target.iterdir()}
    assert names == {
        *("tokenizer.json", "tokenizer_config.json", "merges.txt", "chat_template.jinja", "preprocessor_config.json"),
        *("config.json", "generation_config.json", "model.safetensors", "README.md"),
    }
    assert {path.name for path in tmp_path.iterdir()} == {"source", "target"}
    generation = json.loads((target / "generation_config.json").read_text())
    assert generation == {"temperature": 0.5, "eos_token_id": [94, 95], "pad_token_id": 95}
    assert load_config(target).vision.image_mean == (0.1, 0.2, 0.3)
    assert_same(load_params(target, CONFIG), params)


def hub_config_7b() -> dict:
    """config.json of the released 7B model, in the flat layout of the hub."""
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "vision_start_token_id": 151652,
        "vision_end_token_id": 151653,
        "vision_token_id": 151654,
        "image_token_id": 151655,
        "video_token_id": 151656,
        "hidden_act": "silu",
        "hidden_size": 3584,
        "initializer_range": 0.02,
        "intermediate_size": 18944,
        "max_position_embeddings": 128000,
        "max_window_layers": 28,
        "model_type": "qwen2_5_vl",
        "num_attention_heads": 28,
        "num_hidden_layers": 28,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.41.2",
        "use_cache": True,
        "use_sliding_window": False,
        "vision_config": {
            "depth": 32,
            "hidden_act": "silu",
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "in_chans": 3,
            "out_hidden_size": 3584,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31],
            "tokens_per_second": 2,
            "temporal_patch_size": 2,
        },
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "vocab_size": 152064,
    }


def nested(flat: dict) -> dict:
    """The same options as transformers 5 writes them."""
    outer = ("architectures", "model_type", "tie_word_embeddings", "vision_config")
    text = {k: v for k, v in flat.items() if k not in outer and not k.endswith(("image_token_id", "video_token_id"))}
    rope = {"rope_type": "default", "rope_theta": text.pop("rope_theta"), **text.pop("rope_scaling")}
    return {k: v for k, v in flat.items() if k not in text or "token_id" in k} | {
        "text_config": text | {"model_type": "qwen2_5_vl_text", "rope_parameters": rope},
        "vision_config": flat["vision_config"] | {"model_type": "qwen2_5_vl_vision"},
        "rope_theta": None,
        "rope_scaling": None,
    }


@pytest.mark.parametrize("layout", [lambda config: config, nested], ids=["flat", "nested"])
def test_released_config_is_the_7b_preset(tmp_path, layout):
    (tmp_path / "config.json").write_text(json.dumps(layout(hub_config_7b())))
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [151645, 151643], "pad_token_id": 151643}')
    config = load_config(tmp_path)
    preset = PRESETS["7b"]
    assert (config.vision, config.text, config.tokens) == (preset.vision, preset.text, preset.tokens)


MEMORY_PROGRAM = """
import gc, json, os, sys
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
import dataclasses, jax, ml_dtypes, numpy as np
from jvlmm.models import qwen2_5_vl
from jvlmm.models.config import ModelConfig, TextConfig, VisionConfig
from jvlmm.models.huggingface import load_params, save_checkpoint
from jvlmm.sharding.mesh import MeshOptions, make_mesh
from jvlmm.sharding.rules import ShardingRules, named_shardings

def status(key):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key))

config = ModelConfig(
    vision=VisionConfig(depth=1, hidden_size=32, num_heads=2, intermediate_size=48, out_hidden_size=512),
    text=TextConfig(vocab_size=4096, hidden_size=512, intermediate_size=2048, num_layers=24, num_heads=8,
                    num_kv_heads=2, mrope_section=(8, 12, 12)),
    scan_layers=True)
shapes, logical = qwen2_5_vl.abstract_params(config)
zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, ml_dtypes.bfloat16), shapes)
save_checkpoint(sys.argv[1], zeros, config, max_shard_bytes=120 * 2**20)
del zeros
shardings = named_shardings(make_mesh(MeshOptions(data=1, fsdp=4)), ShardingRules(), logical, shapes)
gc.collect()
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the peak starts again from here
before = status("VmRSS")
params = jax.block_until_ready(load_params(sys.argv[1], config, shardings))
arrays = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
print(json.dumps({"beyond_the_arrays": status("VmHWM") - before - arrays, "arrays": arrays}))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc to measure peak memory")
def test_peak_host_memory_stays_below_the_largest_file(tmp_path):
    """bf16 files of 120 MiB into float32 arrays over 4 devices: at most 1.3 files beyond the arrays themselves."""
    command = [sys.executable, "-c", MEMORY_PROGRAM, str(tmp_path / "checkpoint")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=500, cwd=Path(__file__).parents[2])
    assert result.returncode == 0, result.stderr
    measured = json.loads(result.stdout.splitlines()[-1])
    sizes = [path.stat().st_size for path in (tmp_path / "checkpoint").glob("*.safetensors")]
    assert len(sizes) > 1
    assert measured["arrays"] > 3 * max(sizes)
    assert measured["beyond_the_arrays"] <= 1.3 * max(sizes), measured


def test_weights_are_as_readable_as_the_files_beside_them(tmp_path):
    save_checkpoint(tmp_path / "out", random_params(CONFIG), CONFIG)
    modes = {path.name: path.stat().st_mode for path in (tmp_path / "out").iterdir()}
    assert len(set(modes.values())) == 1, modes
