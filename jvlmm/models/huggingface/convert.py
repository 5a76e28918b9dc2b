"""Between Hugging Face checkpoints and Orbax's, for `jvlmm convert from-hf` and `jvlmm convert to-hf`."""

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from jvlmm.errors import CheckpointError
from jvlmm.models.huggingface.config import load_config, untied
from jvlmm.models.huggingface.json_file import read_json
from jvlmm.models.huggingface.load import load_params
from jvlmm.models.huggingface.save import copy_companions, save_checkpoint, write_json

_PARAMS = "params"  # Orbax item inside a converted folder, and the field of a training state


def from_huggingface(
    source: str | Path, directory: str | Path, param_dtype: str = "bfloat16", scan_layers: bool = False
) -> dict[str, Any]:
    """Write the Hugging Face checkpoint `source` as an Orbax checkpoint `directory/params`.

    config.json and the tokenizer and processor files go beside it, so that `to_huggingface` needs nothing else.

    Returns {"path", "parameters"}. Raises CheckpointError where `source` is unusable or `directory` is not empty.
    """
    source, directory = Path(source), Path(directory).absolute()
    config = dataclasses.replace(load_config(source), param_dtype=param_dtype, scan_layers=scan_layers)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise CheckpointError(f"{directory} is not an empty folder; choose a new one")
    params = load_params(source, config)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        copy_companions(source, directory)
        for name in ("config.json", "generation_config.json"):
            if (source / name).is_file():
                shutil.copyfile(source / name, directory / name)
        if not config.text.tie_word_embeddings:  # also where config.json ties a head that the weights hold apart
            write_json(directory / "config.json", untied(read_json(source / "config.json")))
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(directory / _PARAMS, params)
    except (OSError, ValueError, RuntimeError) as error:
        shutil.rmtree(directory, ignore_errors=True)
        raise CheckpointError(f"cannot write {directory}: {_one_line(error)}; free space or choose another") from None
    return {"path": str(directory), "parameters": sum(leaf.size for leaf in jax.tree.leaves(params))}


def to_huggingface(
    source: str | Path, directory: str | Path, source_dir: str | Path | None = None, dtype: str = "bfloat16"
) -> dict[str, Any]:
    """Write the parameters of an Orbax checkpoint as a Hugging Face checkpoint `directory`.

    Args:
      source: a folder made by `from_huggingface`; or a training checkpoint: one step's folder, or the folder of all
        steps, of which the newest is taken.
      source_dir: Hugging Face folder whose config.json, tokenizer and processor files belong to the parameters;
        `source` itself where it holds them.

    Returns {"path", "parameters"}. Raises CheckpointError where the source holds no parameters or does not fit.
    """
    source = Path(source).absolute()
    source_dir = source if source_dir is None else Path(source_dir)
    if not (source_dir / "config.json").is_file():
        raise CheckpointError(f"{source_dir} holds no config.json; name the checkpoint folder the training began from")
    params = _restore_params(*_locate(source))
    if "decoder" not in params:
        raise CheckpointError(
            f"{source} holds {', '.join(params)} and no decoder: a LoRA stage leaves the frozen model out of its "
            "checkpoints; finish the run, which exports it merged"
        )
    config = dataclasses.replace(load_config(source_dir), scan_layers="layers" in params["decoder"])
    save_checkpoint(directory, params, config, dtype, source_dir)
    return {"path": str(directory), "parameters": sum(leaf.size for leaf in jax.tree.leaves(params))}


def _locate(source: Path) -> tuple[Path, bool]:
    """(Orbax item, whether it is a training state)."""
    if (source / _PARAMS).is_dir():
        return source / _PARAMS, False
    steps = [entry for entry in source.glob("*") if entry.name.isdigit() and (entry / "state").is_dir()]
    newest = max(steps, key=lambda entry: int(entry.name), default=source)
    if (newest / "state").is_dir():
        return newest / "state", True
    raise CheckpointError(f"{source} holds neither {_PARAMS}/ nor a training step; name an Orbax checkpoint folder")


def _restore_params(path: Path, inside_state: bool) -> Mapping[str, Any]:
    """The parameters alone on the default device; optimiser moments of a training state are not read."""
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            tree = checkpointer.metadata(path).item_metadata.tree
            tree = {_PARAMS: tree[_PARAMS]} if inside_state else tree
            target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), tree)
            restore_args = ocp.checkpoint_utils.construct_restore_args(target)
            arguments = ocp.args.PyTreeRestore(item=target, restore_args=restore_args, partial_restore=True)
            restored = checkpointer.restore(path, args=arguments)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise CheckpointError(f"{path}: cannot be restored: {_one_line(error)}; name another checkpoint") from None
    return restored[_PARAMS] if inside_state else restored


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
