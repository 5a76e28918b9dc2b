"""Damaged, foreign and incomplete checkpoints, and a disk that fills: one clear line each, nothing lost."""

import dataclasses
import json
import os
import resource
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy_model
from safetensors.numpy import load_file, save_file

from jvlmm.errors import CheckpointError
from jvlmm.models import qwen2_5_vl
from jvlmm.models.huggingface import load_config, load_params, save_checkpoint
from jvlmm.models.huggingface.convert import from_huggingface, to_huggingface
from jvlmm.training.checkpoints import Checkpoints
from jvlmm.training.state import TrainState

CONFIG = dataclasses.replace(
    toy_model.CONFIG,
    vision=dataclasses.replace(toy_model.CONFIG.vision, depth=1, fullatt_block_indexes=(0,)),
    text=dataclasses.replace(toy_model.CONFIG.text, tie_word_embeddings=True),
    tokens=dataclasses.replace(toy_model.CONFIG.tokens, eos=(94, 95)),
)


def random_params(config=CONFIG):
    rng = np.random.default_rng(0)
    shapes, _ = qwen2_5_vl.abstract_params(config)
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), shapes)


@pytest.fixture(scope="module")
def params():
    return random_params()


@pytest.fixture
def checkpoint(params, tmp_path):
    """A healthy checkpoint in several files."""
    save_checkpoint(tmp_path / "model", params, CONFIG, dtype="float32", max_shard_bytes=80_000)
    return tmp_path / "model"


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_tensors(folder, edit):
    path = sorted(folder.glob("*.safetensors"))[0]
    save_file(edit(load_file(path)), path)


def truncate(folder):
    path = sorted(folder.glob("*.safetensors"))[1]
    os.truncate(path, path.stat().st_size // 2)


def rename_first(folder):
    edit_tensors(folder, lambda tensors: {("x." + k if i == 0 else k): v for i, (k, v) in enumerate(tensors.items())})


def add_unknown(folder):
    edit_tensors(folder, lambda tensors: tensors | {"model.layers.0.mlp.experts.0.weight": np.zeros(1, np.float32)})


def quantise(folder):
    edit_tensors(folder, lambda tensors: {key: value.astype(np.int8) for key, value in tensors.items()})


def escape(folder):
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["lm_head.weight"] = "../other.safetensors"
    path.write_text(json.dumps(index))


DAMAGES = {
    "missing shard": (lambda f: sorted(f.glob("*.safetensors"))[1].unlink(), ["model-00002-of", "missing shard"]),
    "no weights": (lambda f: [p.unlink() for p in f.glob("*safetensors*")], ["neither model.safetensors nor"]),
    "truncated": (truncate, ["model-00002-of", "not a complete safetensors file"]),
    "missing tensor": (rename_first, ["1 tensor(s) missing, first", "patch_embed"]),
    "unknown tensor": (add_unknown, ["unexpected", "experts.0.weight"]),
    "wrong shape": (lambda f: edit_config(f, intermediate_size=128), ["has shape", "config.json asks for"]),
    "too few layers": (lambda f: edit_config(f, num_hidden_layers=1), ["unexpected", "model.layers.1."]),
    "quantised": (quantise, ["is I8", "F32, BF16, F16"]),
    "foreign": (lambda f: edit_config(f, model_type="llama"), ["'llama'", "'qwen2_5_vl'"]),
    "activation": (lambda f: edit_config(f, hidden_act="gelu"), ["hidden_act is 'gelu'", "'silu'"]),
    "mistyped": (lambda f: edit_config(f, hidden_size="wide"), ["hidden_size"]),
    "no config": (lambda f: (f / "config.json").unlink(), ["config.json: no such file"]),
    "torn config": (lambda f: (f / "config.json").write_text("{"), ["config.json: cannot be read as JSON"]),
    "torn index": (lambda f: (f / "model.safetensors.index.json").write_text("{}"), ["has no weight_map"]),
    "escape": (escape, ["'../other.safetensors'", "outside"]),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_checkpoint_is_one_clear_line(checkpoint, damage):
    damage, words = DAMAGES[damage]
    damage(checkpoint)
    with pytest.raises(CheckpointError) as caught:
        load_params(checkpoint, load_config(checkpoint))
    message = str(caught.value)
    assert "\n" not in message
    assert str(checkpoint) in message
    for word in words:
        assert word in message


@pytest.mark.parametrize("load", [load_config, lambda path: load_params(path, CONFIG)])
def test_no_such_directory(load, tmp_path):
    with pytest.raises(CheckpointError, match="nowhere: no such checkpoint directory"):
        load(tmp_path / "nowhere")


@pytest.fixture
def full_disk():
    """No file may grow beyond 32 KiB: writing fails in the middle, as on a full disk."""
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (32 * 1024, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    signal.signal(signal.SIGXFSZ, handler)


def test_full_disk_leaves_the_earlier_checkpoint_intact(checkpoint, params, full_disk):
    before = {path.name: path.read_bytes() for path in checkpoint.iterdir()}
    changed = jax.tree.map(lambda leaf: leaf + 1, params)
    with pytest.raises(CheckpointError, match="cannot write the checkpoint .*model: .*free space"):
        save_checkpoint(checkpoint, changed, CONFIG, dtype="float32")
    assert {path.name: path.read_bytes() for path in checkpoint.iterdir()} == before
    assert [path.name for path in checkpoint.parent.iterdir()] == ["model"]


def test_unwritable_places_are_refused(params, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter.tex").write_text("mine")
    for path, reason in (("file", "is a file"), ("thesis", "something other than a checkpoint"), ("file/x", "file")):
        with pytest.raises(CheckpointError, match=reason):
            save_checkpoint(tmp_path / path, params, CONFIG)
    assert (tmp_path / "thesis/chapter.tex").read_text() == "mine"
    with pytest.raises(CheckpointError, match="'int4'; allowed: float32, bfloat16, float16"):
        save_checkpoint(tmp_path / "out", params, CONFIG, dtype="int4")
    with pytest.raises(CheckpointError, match="nowhere: no such directory to copy tokenizer"):
        save_checkpoint(tmp_path / "out", params, CONFIG, source_dir=tmp_path / "nowhere")


def test_parameters_of_another_config_are_refused(params, tmp_path):
    wider = dataclasses.replace(CONFIG, text=dataclasses.replace(CONFIG.text, intermediate_size=96))
    with pytest.raises(CheckpointError, match="mlp.*has shape"):
        save_checkpoint(tmp_path / "out", params, wider)
    untied = dataclasses.replace(CONFIG, text=dataclasses.replace(CONFIG.text, tie_word_embeddings=False))
    with pytest.raises(CheckpointError, match="lm_head.embedding is missing"):
        save_checkpoint(tmp_path / "out", params, untied)
    assert not list(tmp_path.iterdir())


def assert_same_weights(found, expected):
    found, expected = load_file(found / "model.safetensors"), load_file(expected / "model.safetensors")
    assert set(found) == set(expected)
    for key, value in expected.items():
        np.testing.assert_array_equal(found[key], value, err_msg=key)


@pytest.mark.parametrize("scan_layers", [False, True], ids=["unrolled", "scanned"])
def test_convert_to_orbax_and_back(params, tmp_path, scan_layers):
    hub, orbax, back = (tmp_path / name for name in ("hub", "orbax", "back"))
    save_checkpoint(hub, params, CONFIG, dtype="float32")
    (hub / "tokenizer.json").write_text("{}")
    result = from_huggingface(hub, orbax, param_dtype="float32", scan_layers=scan_layers)
    assert result["parameters"] == sum(leaf.size for leaf in jax.tree.leaves(params))
    assert to_huggingface(orbax, back, dtype="float32") == result | {"path": str(back)}
    assert_same_weights(back, hub)
    assert (back / "tokenizer.json").exists()
    assert load_config(back) == load_config(hub)
    with pytest.raises(CheckpointError, match="is not an empty folder"):
        from_huggingface(hub, orbax)


def test_convert_newest_step_of_a_training_checkpoint(params, tmp_path):
    hub, training, back = (tmp_path / name for name in ("hub", "training", "back"))
    save_checkpoint(hub, params, CONFIG, dtype="float32")
    with Checkpoints(training) as checkpoints:
        for step in (9, 10):
            trained = jax.tree.map(lambda leaf, step=step: jnp.asarray(leaf + (10 - step)), params)
            state = TrainState(jnp.int32(step), trained, optax.adam(1e-3).init(trained))
            checkpoints.save(state, {"position": step})
    to_huggingface(training, back, source_dir=hub, dtype="float32")
    assert_same_weights(back, hub)
    with pytest.raises(CheckpointError, match="holds no config.json"):
        to_huggingface(training, back)
    with pytest.raises(CheckpointError, match="neither params/ nor a training step"):
        to_huggingface(hub, tmp_path / "other")
