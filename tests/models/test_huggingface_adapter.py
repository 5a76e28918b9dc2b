"""Adapters in PEFT's file format: names and shapes as its documentation says, values as the merged export has them."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file
from toy_model import CONFIG, needs_eight

from jvlmm.errors import CheckpointError
from jvlmm.models.huggingface import load_params, read_adapter, save_adapter, save_checkpoint
from jvlmm.models.huggingface.config import hub_config
from jvlmm.models.qwen2_5_vl import abstract_params, stack_layers
from jvlmm.sharding.mesh import MeshOptions, make_mesh
from jvlmm.sharding.rules import ShardingRules, named_shardings
from jvlmm.training.lora import LoraOptions, init_adapters, merge_adapters

SCANNED = dataclasses.replace(CONFIG, scan_layers=True)
OPTIONS = LoraOptions(rank=4, alpha=6.0, targets=("*",))


def drawn(shapes):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)


@pytest.fixture(scope="module")
def adapters():
    return drawn(jax.eval_shape(lambda key: init_adapters(CONFIG, OPTIONS, key), jax.random.key(0)))


@pytest.fixture(scope="module")
def saved(adapters, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters") / "sft"
    save_adapter(folder, adapters, CONFIG, OPTIONS.alpha, "Qwen/Qwen2.5-VL-7B-Instruct")
    return folder


def test_merged_export_is_the_base_with_the_scaled_product(adapters, saved, tmp_path):
    params = drawn(abstract_params(CONFIG)[0])
    merged = merge_adapters(params, adapters, OPTIONS, "float32")
    for name, tree in (("base", params), ("merged", merged)):
        save_checkpoint(tmp_path / name, tree, CONFIG, "float32")
    base, merged = (load_file(tmp_path / name / "model.safetensors") for name in ("base", "merged"))
    weights = load_file(saved / "adapter_model.safetensors")
    adapted = {key.removesuffix(".lora_A.weight") for key in weights if key.endswith(".lora_A.weight")}
    assert len(weights) == 2 * len(adapted)
    of_hub = {"model.visual": "visual", "model.language_model": "model"}
    for key in base:
        module = key.removesuffix(".weight")
        peft = next((f"{new}{module.removeprefix(old)}" for new, old in of_hub.items() if module.startswith(old)), key)
        peft = f"base_model.model.{peft}"
        expected = base[key]
        if peft in adapted:
            a, b = (weights[f"{peft}.lora_{name}.weight"] for name in "AB")
            product = b.reshape(len(b), -1) @ a.reshape(len(a), -1)
            expected = expected + OPTIONS.alpha / OPTIONS.rank * product.reshape(expected.shape)
            adapted.remove(peft)
        np.testing.assert_allclose(merged[key], expected, atol=1e-4, err_msg=key)
    assert not adapted


def test_stacked_layers_give_the_same_file(adapters, saved, tmp_path):
    save_adapter(tmp_path / "stacked", stack_layers(adapters), SCANNED, OPTIONS.alpha, "Qwen/Qwen2.5-VL-7B-Instruct")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "stacked" / name).read_bytes() == (saved / name).read_bytes()


def test_names_and_shapes_are_those_of_transformers_modules(saved):
    """lora_A of a module has its inputs, and lora_B its outputs; of a convolution the second is one of size 1."""
    torch = pytest.importorskip("torch", reason="torch is not installed: names are not checked against transformers")
    transformers = pytest.importorskip("transformers")
    text = {**hub_config(CONFIG, "float32"), "dtype": "float32"}
    with torch.device("meta"):
        model = transformers.Qwen2_5_VLForConditionalGeneration(transformers.Qwen2_5_VLConfig(**text))
    kinds = torch.nn.Linear, torch.nn.Conv3d
    modules = {name: module for name, module in model.named_modules() if isinstance(module, kinds)}
    modules.pop("lm_head")
    expected = {}
    for name, module in modules.items():
        outputs, *inputs = module.weight.shape
        expected[f"base_model.model.{name}.lora_A.weight"] = (OPTIONS.rank, *inputs)
        expected[f"base_model.model.{name}.lora_B.weight"] = (outputs, OPTIONS.rank, *[1] * (len(inputs) - 1))
    weights = load_file(saved / "adapter_model.safetensors")
    assert {key: value.shape for key, value in weights.items()} == expected
    config = json.loads((saved / "adapter_config.json").read_text())
    assert set(config.pop("target_modules")) == set(modules)
    assert config["base_model_name_or_path"] == "Qwen/Qwen2.5-VL-7B-Instruct"
    assert (config["peft_type"], config["r"], config["lora_alpha"], config["bias"]) == ("LORA", 4, 6.0, "none")


def test_an_earlier_adapter_is_replaced_and_nothing_else(adapters, saved, tmp_path):
    for alpha in (1.0, 2.0):
        save_adapter(tmp_path / "again", adapters, CONFIG, alpha, "base")
    assert json.loads((tmp_path / "again/adapter_config.json").read_text())["lora_alpha"] == 2.0
    assert [path.name for path in tmp_path.iterdir()] == ["again"]
    (tmp_path / "other").mkdir()
    with pytest.raises(CheckpointError, match="holds something other than an adapter"):
        save_adapter(tmp_path / "other", adapters, CONFIG, 1.0, "base")


def random_base(folder, config=CONFIG):
    params = drawn(abstract_params(config)[0])
    save_checkpoint(folder, params, config, "float32")
    return params


def assert_close(found, expected):
    for (path, a), (_, b) in zip(
        *(sorted(flatten_dict(tree, sep=".").items()) for tree in (found, expected)), strict=True
    ):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=1e-4, err_msg=path)


@pytest.mark.parametrize("config", [CONFIG, SCANNED], ids=["unrolled", "scanned"])
def test_an_adapter_of_ours_is_merged_as_it_is_read(adapters, saved, tmp_path, config):
    params = random_base(tmp_path / "base")
    merged = merge_adapters(params, adapters, OPTIONS, "float32")
    expected = stack_layers(merged) if config.scan_layers else merged
    assert_close(load_params(tmp_path / "base", config, adapter=saved), expected)
    assert_close(load_params(tmp_path / "base", config), stack_layers(params) if config.scan_layers else params)


@needs_eight
def test_an_adapter_is_merged_slice_by_slice_on_a_mesh(adapters, saved, tmp_path):
    params = random_base(tmp_path / "base")
    mesh = make_mesh(MeshOptions(data=2, fsdp=2, tensor=2), jax.devices()[:8])
    shapes, logical = abstract_params(CONFIG)
    shardings = named_shardings(mesh, ShardingRules(), logical, shapes)
    found = load_params(tmp_path / "base", CONFIG, shardings, saved)
    assert_close(found, merge_adapters(params, adapters, OPTIONS, "float32"))


Q, V = (f"model.layers.0.self_attn.{name}_proj" for name in "qv")


def write_adapter(folder, tensors, **options):
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    plain = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "base_model_name_or_path": "base"}
    (folder / "adapter_config.json").write_text(json.dumps(plain | options))
    return folder


def pair(module, rank=2, inputs=64, outputs=64, form="base_model.model.{}.lora_{}.weight"):
    rng = np.random.default_rng(rank)
    shapes = {"A": (rank, inputs), "B": (outputs, rank)}
    return {form.format(module, part): rng.normal(size=shape).astype(np.float32) for part, shape in shapes.items()}


def merged_query(tmp_path, tensors, **options):
    """(query kernel of layer 0 as stored, before, after)"""
    params = random_base(tmp_path / "base")
    adapter = write_adapter(tmp_path / "adapter", tensors, **options)
    after = load_params(tmp_path / "base", CONFIG, adapter=adapter)
    kernels = (np.asarray(tree["decoder"]["layers_0"]["self_attn"]["q_proj"]["kernel"]) for tree in (params, after))
    return tuple(kernel.reshape(kernel.shape[0], -1).T for kernel in kernels)


@pytest.mark.parametrize(
    ("module", "form"),
    [
        (Q, "base_model.model.{}.lora_{}.weight"),  # transformers 4.49
        (Q.replace("model.", "model.language_model.", 1), "base_model.model.{}.lora_{}.weight"),  # and 5
        (Q, "base_model.model.{}.lora_{}.default.weight"),  # saved as a plain state
    ],
)
@pytest.mark.parametrize(
    ("options", "scale"),
    [
        ({}, 3.0),
        ({"use_rslora": True}, 6 / 2**0.5),
        ({"alpha_pattern": {"q_proj": 1}}, 0.5),
        ({"r": 16, "rank_pattern": {r"layers\.0\.self_attn\.q_proj": 2}, "init_lora_weights": "gaussian"}, 3.0),
    ],
)
def test_adapters_of_peft_are_merged_with_their_scale(tmp_path, module, form, options, scale):
    tensors = pair(module, form=form)
    before, after = merged_query(tmp_path, tensors, **options)
    a, b = tensors.values()
    np.testing.assert_allclose(after, before + scale * b @ a, atol=1e-4)


REFUSED = {
    "another method": ({}, {"peft_type": "IA3"}, ["peft_type is 'IA3'", "merge_and_unload"]),
    "DoRA": ({}, {"use_dora": True}, ["use_dora"]),
    "PiSSA": ({}, {"init_lora_weights": "pissa"}, ["'pissa'", "changes the base"]),
    "whole modules": ({"base_model.model.lm_head.weight": np.zeros((96, 64), np.float32)}, {}, ["lm_head.weight"]),
    "magnitudes": ({f"base_model.model.{Q}.lora_magnitude_vector": np.zeros(64, np.float32)}, {}, ["magnitude"]),
    "another width": (pair(V, inputs=32), {}, ["v_proj do not fit a weight of", "(base)"]),
    "another model": (pair("model.layers.9.self_attn.q_proj"), {}, ["layers.9", "does not have"]),
    "half": (dict([pair(V, outputs=32).popitem()]), {}, ["only one of lora_A and lora_B"]),
    "another rank": (pair(V, rank=3, outputs=32), {}, ["the rank of", "is 2 here and 3"]),
    "no rank": ({}, {"r": 0}, ["r is 0"]),
    "a pattern that is none": ({}, {"rank_pattern": {"(": 2}}, ["rank_pattern", "no pattern"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_an_adapter_asks_besides_lora_is_refused(tmp_path, case):
    tensors, options, words = REFUSED[case]
    adapter = write_adapter(tmp_path / "adapter", pair(Q) | tensors, **options)
    with pytest.raises(CheckpointError) as caught:
        read_adapter(adapter, CONFIG)
    assert "\n" not in str(caught.value) and str(adapter) in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_an_adapter_of_a_tied_head_is_refused(tmp_path):
    tied = dataclasses.replace(CONFIG, text=dataclasses.replace(CONFIG.text, tie_word_embeddings=True))
    adapter = write_adapter(tmp_path / "adapter", pair("lm_head", outputs=CONFIG.text.vocab_size))
    assert set(
        read_adapter(adapter, dataclasses.replace(tied, text=dataclasses.replace(tied.text, tie_word_embeddings=False)))
    ) == {"lm_head.weight"}
    with pytest.raises(CheckpointError, match="lm_head is adapted, and the model's head is its embedding"):
        read_adapter(adapter, tied)


def test_a_folder_without_an_adapter_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="no adapter, adapter_config.json is missing"):
        read_adapter(tmp_path, CONFIG)
    adapter = write_adapter(tmp_path / "adapter", pair(Q))
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(CheckpointError, match="only safetensors are read"):
        read_adapter(adapter, CONFIG)


def test_what_was_trained_on_a_merged_adapter_is_written_with_it(adapters, tmp_path):
    """The second adapter alone would belong to no folder: the file holds the sum, which belongs to the base."""
    params = random_base(tmp_path / "base")
    first = write_adapter(tmp_path / "first", pair(Q) | pair(V, outputs=32), use_rslora=True)
    started = load_params(tmp_path / "base", CONFIG, adapter=first)
    options = LoraOptions(rank=4, alpha=6.0, targets=("decoder/layers_*/self_attn/q_proj", "vision/*", "merger/*"))
    trained = drawn(jax.eval_shape(lambda key: init_adapters(CONFIG, options, key), jax.random.key(0)))
    save_adapter(tmp_path / "second", trained, CONFIG, options.alpha, str(tmp_path / "base"), earlier=first)
    expected = merge_adapters(started, trained, options, "float32")
    assert_close(load_params(tmp_path / "base", CONFIG, adapter=tmp_path / "second"), expected)
    assert not np.allclose(params["merger"]["fc1"]["kernel"], expected["merger"]["fc1"]["kernel"])


def test_an_adapter_is_not_added_to_the_model_that_holds_it_already(tmp_path):
    """A stage leaves both, and `stage:NAME` names either; only together they are of no use."""
    run = tmp_path / "run"
    for folder in ("models", "adapters", "stages"):
        (run / folder).mkdir(parents=True)
    random_base(run / "models/sft")
    adapter = write_adapter(run / "adapters/sft", pair(Q))
    load_params(run / "models/sft", CONFIG, adapter=adapter)  # of no run, only of the same name
    (run / "stages/sft.json").write_text("{}")
    with pytest.raises(CheckpointError, match="models/sft: holds the adapter .*adapters/sft already"):
        load_params(run / "models/sft", CONFIG, adapter=adapter)
    random_base(run / "models/base")
    load_params(run / "models/base", CONFIG, adapter=adapter)
