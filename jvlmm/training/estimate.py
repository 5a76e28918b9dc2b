"""What an update of supervised fine-tuning needs of one device, by arithmetic."""

from typing import Any

import jax
import jax.numpy as jnp

from jvlmm.data.batch import Batch
from jvlmm.models.activations import (
    Share,
    block_bytes,
    feature_bytes,
    head_bytes,
    layer_bytes,
    merger_bytes,
    score_bytes,
    share_of,
    tower_forward_bytes,
)
from jvlmm.models.config import ModelConfig
from jvlmm.sharding.estimate import Estimate, device_bytes, device_size, gathered_size
from jvlmm.sharding.rules import ShardingRules, split_count
from jvlmm.training.lora import ADAPTERS
from jvlmm.training.preparation import PreparedTraining
from jvlmm.training.sft import HEAD_TILE


def update_estimate(
    prepared: PreparedTraining, config: ModelConfig, batch: Batch, frame_patches: int, rules: ShardingRules
) -> Estimate:
    """Bytes of one device for one update on `batch`, ShapeDtypeStructs that lie on the mesh of `prepared`.

    Parameters, optimiser state and batch are counted from their shardings. Gradients are float32 numbers of what is
    trained. Activations are those of `models.activations`, times layers, where there is a backward pass, and the inputs
    of final norm and head, (8 + c) D a token. The working set is the largest of: the head's; the tower's block; the
    decoder's layer, which is its activations without remat, its scores, its gathered weights (two layers', so that one
    arrives while the other computes) and their gradients. What the optimiser's rule needs besides is not counted.
    """
    state, mesh = prepared.shapes, prepared.shardings.step.mesh
    trained = {name: tree for name, tree in state.params.items() if name not in prepared.freeze}
    share, c = share_of(batch, mesh, rules, frame_patches), jnp.dtype(config.dtype).itemsize
    ends = share.tokens * config.text.hidden_size * (8 + c)
    tower = _is_backward("vision", prepared)
    merger = merger_bytes(config, share) if tower or _is_backward("merger", prepared) else 0
    blocks = _kept(config, share, prepared, config.remat)
    return Estimate(
        parameters=device_bytes(state.params),
        optimizer=device_bytes(state.opt_state),
        inputs=device_bytes(batch),
        gradients=4 * _size(trained),
        activations=round(blocks + ends + merger + feature_bytes(config, share)),
        working=round(
            max(
                head_bytes(config, share, HEAD_TILE),
                _layer_working(config, share, state.params["decoder"], rules),
                block_bytes(config, share, "none") if tower else tower_forward_bytes(config, share),
            )
        ),
        host=round(_kept(config, share, prepared, "full")) if config.remat == "offload" else 0,
        collectives=_collectives(prepared, config, share, trained, rules),
    )


def _kept(config: ModelConfig, share: Share, prepared: PreparedTraining, remat: str) -> float:
    """Bytes that the layers of the decoder, and the blocks of a tower with a backward pass, keep."""
    blocks = config.vision.depth if _is_backward("vision", prepared) else 0
    layers = config.text.num_layers
    return layers * layer_bytes(config, share, remat) + blocks * block_bytes(config, share, remat)


def _is_backward(module: str, prepared: PreparedTraining) -> bool:
    return module not in prepared.freeze or module in prepared.adapted


def _layer_working(config: ModelConfig, share: Share, decoder: Any, rules: ShardingRules) -> float:
    """The backward pass of one decoder layer."""
    tile = config.mlp_tile if config.mlp_tile and share.context == 1 else share.length
    fed = min(tile, share.length) / share.length
    weights = gathered_size(decoder["layers"], rules.batch) / config.text.num_layers
    c = jnp.dtype(config.dtype).itemsize
    return layer_bytes(config, share, "none", fed) + score_bytes(config, share) + 3 * c * weights


def _collectives(prepared: PreparedTraining, config: ModelConfig, share: Share, trained: Any, rules: ShardingRules):
    """Bytes a device receives, as `sharding.collectives` counts them.

    Split weights are gathered for each pass and their gradients scattered, in the type of products; replicated ones'
    are reduced in float32. Heads and MLPs reduce a state of D a token twice a layer and pass; a split row gathers its
    keys and values. A pass is: forward, backward, and forward again where remat computes products again.
    """
    c, params, mesh = jnp.dtype(config.dtype).itemsize, prepared.shapes.params, prepared.shardings.step.mesh
    layers, passes = config.text.num_layers, 3 if config.remat in ("full", "offload") else 2
    backward = {name: tree for name, tree in params.items() if name == ADAPTERS or _is_backward(name, prepared)}
    gathers = c * sum(_received(tree, rules) * (2 if name in backward else 1) for name, tree in params.items())
    scatters = c * _received(trained, rules)
    copies = mesh.size // split_count(mesh, rules.embed) // split_count(mesh, rules.heads)
    reduced = 2 * 4 * _size(trained) if copies > 1 else 0
    if share.heads > 1:
        reduced += 2 * 2 * passes * layers * c * share.tokens * config.text.hidden_size
    if share.context > 1:
        kv = 2 * config.text.num_kv_heads * config.text.head_dim / share.kv_heads
        gathers += round((passes - 1) * layers * c * share.rows * share.length * kv)
        scatters += round(layers * c * share.rows * share.length * kv)
    named = {"all-gather": gathers, "all-reduce": reduced, "reduce-scatter": scatters}
    return {kind: size for kind, size in named.items() if size}


def _received(tree: Any, rules: ShardingRules) -> int:
    """Elements of the gathered arrays of a tree; 0 where nothing is gathered."""
    whole = gathered_size(tree, rules.batch)
    return whole if whole > _size(tree) else 0


def _size(tree: Any) -> int:
    return sum(map(device_size, jax.tree.leaves(tree)))
