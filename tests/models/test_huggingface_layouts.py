"""Folders as others write them: heads of tied models, prefixes of wrappers, quantised weights, adapters; odd sizes."""

import dataclasses
import json
import time

import jax
import numpy as np
import pytest
import toy_model
from safetensors.numpy import load_file, save_file

from jvlmm.errors import CheckpointError
from jvlmm.models import qwen2_5_vl
from jvlmm.models.huggingface import load_config, load_params, save_checkpoint
from jvlmm.models.huggingface.convert import from_huggingface, to_huggingface

TIED = dataclasses.replace(
    toy_model.CONFIG,
    vision=dataclasses.replace(toy_model.CONFIG.vision, depth=1, fullatt_block_indexes=(0,)),
    text=dataclasses.replace(toy_model.CONFIG.text, num_layers=1, tie_word_embeddings=True),
    tokens=dataclasses.replace(toy_model.CONFIG.tokens, eos=(94, 95)),
)
UNTIED = dataclasses.replace(TIED, text=dataclasses.replace(TIED.text, tie_word_embeddings=False))
HEAD, TABLE = "lm_head.weight", "model.embed_tokens.weight"


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), qwen2_5_vl.abstract_params(TIED)[0])


@pytest.fixture
def folder(params, tmp_path):
    """A tied checkpoint in one file."""
    save_checkpoint(tmp_path / "model", params, TIED, dtype="float32")
    return tmp_path / "model"


def edit(folder, change):
    """Replaces the tensors by `change` of them."""
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path)


def edit_json(folder, name="config.json", **changes):
    path = folder / name
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | changes))


def assert_same(found, expected):
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), found, dict(expected))


@pytest.mark.parametrize("sharded", [False, True])
def test_a_head_of_its_own_counts_although_config_json_ties_it(params, folder, sharded):
    """transformers 5.24 does not tie what the file holds with two values; 4.x and the export here agree with it."""
    edit(folder, lambda tensors: tensors | {HEAD: tensors[TABLE] + np.float32(1)})
    if sharded:
        tensors = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        parts = {
            "model-00001-of-00002.safetensors": {HEAD: tensors.pop(HEAD)},
            "model-00002-of-00002.safetensors": tensors,
        }
        for name, part in parts.items():
            save_file(part, folder / name)
        weight_map = {key: name for name, part in parts.items() for key in part}
        edit_json(folder, "model.safetensors.index.json", metadata={}, weight_map=weight_map)
    config = load_config(folder)
    assert config == UNTIED
    loaded = load_params(folder, config)
    head = loaded["decoder"]["lm_head"]["embedding"]
    np.testing.assert_array_equal(head, params["decoder"]["embed"]["embedding"] + np.float32(1))
    save_checkpoint(folder.parent / "out", loaded, config, "float32", source_dir=folder)
    assert load_config(folder.parent / "out") == UNTIED
    assert json.loads((folder.parent / "out/config.json").read_text())["tie_word_embeddings"] is False


def test_a_head_of_its_own_survives_conversion_to_orbax_and_back(folder):
    edit(folder, lambda tensors: tensors | {HEAD: tensors[TABLE] * np.float32(2)})
    from_huggingface(folder, folder.parent / "orbax", param_dtype="float32")
    to_huggingface(folder.parent / "orbax", folder.parent / "back", dtype="float32")
    found, expected = (load_file(path / "model.safetensors") for path in (folder.parent / "back", folder))
    assert found.keys() == expected.keys()
    np.testing.assert_array_equal(found[HEAD], expected[HEAD])


def only_the_head(tensors):
    return {HEAD if key == TABLE else key: value for key, value in tensors.items()}


def prefixed(prefix):
    return lambda tensors: {prefix + key: value for key, value in tensors.items()}


def of_language_model(tensors):
    """The layout of early transformers 4.52 exports: `language_model.layers` and `visual` side by side."""
    return {key.replace("model.", "language_model.", 1): value for key, value in tensors.items()}


def inside_the_tower(tensors):
    return {key.replace("visual.blocks.", "visual._orig_mod.blocks."): value for key, value in tensors.items()}


LAYOUTS = {
    "only the head of a tied model": only_the_head,
    "language_model.layers": of_language_model,
    "language_model.model.layers": lambda t: {k.replace("model.", "language_model.model.", 1): v for k, v in t.items()},
    "compiled tower": inside_the_tower,
    **{prefix: prefixed(prefix) for prefix in ("model.", "module.", "_orig_mod.", "base_model.model.")},
    "several": prefixed("_orig_mod.module._fsdp_wrapped_module.base_model.model."),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_others_are_read(params, folder, layout):
    edit(folder, LAYOUTS[layout])
    assert load_config(folder) == TIED
    assert_same(load_params(folder, TIED), params)


def test_two_names_of_one_tensor_are_refused(folder):
    edit(folder, lambda tensors: tensors | {f"module.{TABLE}": tensors[TABLE] + 1})
    with pytest.raises(CheckpointError, match=f"module.{TABLE} are both {TABLE}|{TABLE} are both {TABLE}"):
        load_config(folder)


def with_tensor(key, dtype=np.int32):
    return lambda folder: edit(folder, lambda tensors: tensors | {key: np.zeros(2, dtype)})


def with_quantisation(**options):
    return lambda folder: edit_json(folder, quantization_config=options)


def adapter_alone(folder):
    (folder / "config.json").unlink()
    edit_json(folder, "adapter_config.json", peft_type="LORA", base_model_name_or_path="Qwen/Qwen2.5-VL-3B-Instruct")


Q_PROJ = "model.layers.0.self_attn.q_proj"
REFUSED = {
    "AWQ": (with_quantisation(quant_method="awq", bits=4), ["quantised with AWQ", "unquantised"]),
    "GPTQ": (with_quantisation(quant_method="gptq"), ["quantised with GPTQ"]),
    "bitsandbytes": (with_quantisation(quant_method="bitsandbytes"), ["quantised with bitsandbytes", "dequantize"]),
    "FP8": (with_quantisation(quant_method="fp8"), ["quantised with FP8"]),
    "other": (with_quantisation(quant_method="hqq"), ["quantised with hqq"]),
    "mistyped": (lambda f: edit_json(f, quantization_config=[1]), ["quantised with an unnamed method"]),
    "AutoGPTQ's file": (lambda f: edit_json(f, "quantize_config.json", bits=4), ["quantize_config.json", "GPTQ"]),
    "AWQ's file": (lambda f: edit_json(f, "quant_config.json", w_bit=4), ["quant_config.json", "AWQ"]),
    "GPTQ's tensors": (with_tensor(f"{Q_PROJ}.qweight"), ["GPTQ or AWQ", f"{Q_PROJ}.qweight"]),
    "4-bit tensors": (with_tensor(f"{Q_PROJ}.weight.absmax"), ["bitsandbytes", "absmax"]),
    "8-bit tensors": (with_tensor(f"{Q_PROJ}.SCB"), ["bitsandbytes", "SCB"]),
    "FP8's tensors": (with_tensor(f"{Q_PROJ}.weight_scale_inv", np.float32), ["FP8", "weight_scale_inv"]),
    "unmerged": (
        with_tensor(f"base_model.model.{Q_PROJ}.lora_A.default.weight", np.float32),
        ["LoRA adapters that are not merged", "merge_and_unload", "--adapter"],
    ),
    "base layers": (with_tensor(f"{Q_PROJ}.base_layer.weight", np.float32), ["not merged"]),
    "adapter": (adapter_alone, ["PEFT adapter (LORA) of Qwen/Qwen2.5-VL-3B-Instruct", "--adapter", "STAGE.adapter="]),
    "weight_map of numbers": (
        lambda f: (
            (f / "model.safetensors").unlink(),
            edit_json(f, "model.safetensors.index.json", weight_map={"a": 3}),
        ),
        ["model.safetensors.index.json", "weight_map['a'] is 3"],
    ),
    "weight_map of lists": (
        lambda f: edit_json(f, "model.safetensors.index.json", weight_map={"a": ["x"], "b": "y"}),
        ["weight_map['a'] is ['x']"],
    ),
    "layers": (
        lambda f: edit_json(f, num_hidden_layers=10**9),
        ["config.json: num_hidden_layers is 1000000000", "1024"],
    ),
    "nested layers": (
        lambda f: edit_json(f, text_config={"num_hidden_layers": 10**9}),
        ["text_config.num_hidden_layers is 1000000000"],
    ),
    "depth": (lambda f: edit_json(f, vision_config={"depth": 10**9}), ["vision_config.depth is 1000000000"]),
    "width": (lambda f: edit_json(f, hidden_size=10**12), ["hidden_size is 1000000000000"]),
    "no heads": (lambda f: edit_json(f, num_attention_heads=0), ["num_attention_heads is 0"]),
    "no key/value heads": (lambda f: edit_json(f, num_key_value_heads=0), ["num_key_value_heads is 0"]),
    "no heads in the tower": (lambda f: edit_json(f, vision_config={"num_heads": 0}), ["vision_config.num_heads is 0"]),
    "a number as text": (lambda f: edit_json(f, vocab_size="96"), ["vocab_size is '96'"]),
    "a list as tower": (lambda f: edit_json(f, vision_config=[1]), ["vision_config is no JSON object"]),
    "odd heads": (lambda f: edit_json(f, num_attention_heads=5), ["hidden_size", "num_attention_heads = 5"]),
    "sections": (lambda f: edit_json(f, rope_scaling={"type": "mrope", "mrope_section": [1, 1, 1]}), ["mrope_section"]),
    "ends": (
        lambda f: edit_json(f, "generation_config.json", eos_token_id="x"),
        ["generation_config.json", "eos_token_id"],
    ),
    "end of 400 digits": (
        lambda f: edit_json(f, eos_token_id=10**400),
        ["eos_token_id is an integer of over 30 digits"],
    ),
    "depth of brackets": (
        lambda f: (f / "config.json").write_text("[" * 10**5),
        ["config.json: cannot be read as JSON"],
    ),
    "device": (
        lambda f: ((f / "config.json").unlink(), (f / "config.json").symlink_to("/dev/zero")),
        ["config.json: is no regular file"],
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_is_named_at_once(folder, case):
    damage, words = REFUSED[case]
    damage(folder)
    begun = time.process_time()
    with pytest.raises(CheckpointError) as caught:
        load_params(folder, load_config(folder))
    message = str(caught.value)
    assert "\n" not in message and len(message) < 700 and str(folder) in message
    for word in words:
        assert word in message
    assert time.process_time() - begun < 5
