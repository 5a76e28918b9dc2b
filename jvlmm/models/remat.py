"""What of a block the backward pass finds kept and what it computes again, by the names of activations.

"none" keeps every activation. The others keep, of each block of tower and decoder,

- "minimal": results of products with weights and of attention, with the softmax's peak and total: norms, rotations and
  gates alone are computed again, as under "minimal_with_context" of MaxText;
- "dots": results of products with weights; attention is computed again;
- "full": its input;
- "offload": its input, in the memory of the host, from where it returns shortly before it is needed. On a backend whose
  device memory is the host's, such as CPU, that is "full".

Attention by cuDNN, whose results have no names, is computed again under "minimal" as well.
A projection with an adapter keeps one result, the sum, and the low-rank one [..., rank] between its two thin matrices.
"""

from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name

Remat = Literal["none", "minimal", "dots", "full", "offload"]

_PRODUCT, ATTENDED, _BLOCK_INPUT = "product", "attended", "block_input"


def product(x: jax.Array) -> jax.Array:
    """Mark the result of a product with weights."""
    return checkpoint_name(x, _PRODUCT)


def attended(x: jax.Array) -> jax.Array:
    """Mark what attention's backward pass needs beside queries, keys and values."""
    return checkpoint_name(x, ATTENDED)


def block_input(x: jax.Array) -> jax.Array:
    """Mark the residual stream where it enters a block; all that the block does must follow from it."""
    return checkpoint_name(x, _BLOCK_INPUT)


def rematerialise(function: Callable, remat: Remat, scanned: bool) -> Callable:
    """Wrap a Linen class, or a function of a module, so that the backward pass computes it again."""
    if remat == "none":
        return function
    return nn.remat(function, policy=_policy(remat), prevent_cse=not scanned)


def _policy(remat: Remat) -> Callable[..., Any]:
    policies = jax.checkpoint_policies
    match remat:
        case "minimal":
            return policies.save_only_these_names(_PRODUCT, ATTENDED)
        case "dots":
            return policies.save_only_these_names(_PRODUCT)
        case "full":
            return policies.nothing_saveable
        case "offload":
            return policies.save_and_offload_only_these_names(
                names_which_can_be_saved=[],
                names_which_can_be_offloaded=[_BLOCK_INPUT],
                offload_src="device",
                offload_dst="pinned_host",
            )
        case unknown:
            raise ValueError(f"remat = {unknown!r}: choose 'none', 'minimal', 'dots', 'full' or 'offload'")
