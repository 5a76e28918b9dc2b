"""The formulas of what layers keep, against what JAX's reverse mode keeps of them."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest

from jvlmm.models import qwen2_5_vl
from jvlmm.models.activations import Share, block_bytes, layer_bytes
from jvlmm.models.execution import for_training
from jvlmm.models.presets import PRESETS
from jvlmm.models.vision_inputs import abstract_vision_inputs


def kept(function, params) -> int:
    residuals = jax.eval_shape(lambda params: jax.vjp(function, params)[1], params)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(residuals))


@pytest.mark.parametrize("remat", ["none", "minimal", "dots", "full"])
def test_a_decoder_layer(remat):
    def of(rows, layers):
        config = for_training(PRESETS["tiny"], "gpu", remat)
        config = replace(config, text=replace(config.text, num_layers=layers))
        decoder = qwen2_5_vl.abstract_params(config)[0]["decoder"]
        tokens, positions = jnp.ones((rows, 384), jnp.int32), jnp.ones((rows, 3, 384), jnp.int32)
        forward = lambda decoder: qwen2_5_vl.forward({"decoder": decoder}, config, tokens, positions, tokens)  # noqa: E731
        return kept(forward, decoder), layer_bytes(config, Share(rows, 384), remat)

    # Differences leave out what does not grow with layers and rows alike.
    found = of(3, 3)[0] - of(1, 3)[0] - of(3, 2)[0] + of(1, 2)[0]
    assert of(2, 2)[1] == pytest.approx(found, rel=0.02)


@pytest.mark.parametrize("remat", ["none", "minimal", "dots", "full"])
def test_a_block_of_the_tower(remat):
    def of(patches, depth):
        config = for_training(PRESETS["tiny"], "gpu", remat)
        config = replace(config, vision=replace(config.vision, depth=depth))
        params = qwen2_5_vl.abstract_params(config)[0]
        shapes = abstract_vision_inputs(patches, 256, config.vision)
        inputs = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        encode = lambda params: qwen2_5_vl.encode_vision(params, config, inputs)  # noqa: E731
        modules = {name: params[name] for name in ("vision", "merger")}
        return kept(encode, modules), block_bytes(config, Share(1, 1, patches=patches, frame_patches=256), remat)

    found = of(1024, 3)[0] - of(512, 3)[0] - of(1024, 2)[0] + of(512, 2)[0]
    assert of(512, 2)[1] == pytest.approx(found, rel=0.1)
