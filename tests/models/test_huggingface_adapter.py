"""Adapters in PEFT's file format: names and shapes as its documentation says, values as the merged export has them."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file
from toy_model import CONFIG

from jvlmm.errors import CheckpointError
from jvlmm.models.huggingface import save_adapter, save_checkpoint
from jvlmm.models.huggingface.config import hub_config
from jvlmm.models.qwen2_5_vl import abstract_params, stack_layers
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
