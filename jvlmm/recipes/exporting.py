"""What a training stage leaves behind: a model folder, and its adapters where it trained these."""

from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax

from jvlmm.data.processor import ProcessorOptions
from jvlmm.data.processor_files import write_processing
from jvlmm.models.config import ModelConfig
from jvlmm.models.huggingface import save_adapter, save_checkpoint
from jvlmm.training.finite import check_finite
from jvlmm.training.lora import ADAPTERS, LoraOptions, merge_adapters

ExportType = Literal["float32", "bfloat16"]


def export(
    workdir: Path,
    name: str,
    folder: Path,
    config: ModelConfig,
    params: dict[str, Any],
    shardings: dict[str, Any],
    lora: LoraOptions | None,
    dtype: ExportType,
    shown: ProcessorOptions,
    donate: bool = True,
    adapter: Path | None = None,
) -> dict[str, str]:
    """Write `models/NAME` and, with `lora`, `adapters/NAME`; returns their paths in `workdir`, `path` and `adapter`.

    `folder` is where the model came from, with `adapter` merged into it; `shardings` are those of `params`, the
    adapters among them; `shown` is how training showed questions and media, which the folder states then. With
    `donate` the parameters may be used up. What is written to `adapters/NAME` belongs to `folder` itself: it is the
    sum of `adapter` and what was trained.
    """
    check_finite(params, f"what stage {name!r} would export")
    params, paths = dict(params), {"path": f"models/{name}"}
    if lora is not None:
        adapters, paths["adapter"] = params.pop(ADAPTERS), f"adapters/{name}"
        save_adapter(workdir / paths["adapter"], adapters, config, lora.alpha, str(folder), earlier=adapter)
        merge = partial(merge_adapters, options=lora, dtype=dtype)
        kept = {module: sharding for module, sharding in shardings.items() if module != ADAPTERS}
        params = jax.jit(merge, out_shardings=kept, donate_argnums=0 if donate else ())(params, adapters)
    save_checkpoint(workdir / paths["path"], params, config, dtype=dtype, source_dir=folder)
    if jax.process_index() == 0:
        for path in paths.values():
            write_processing(workdir / path, shown)
    return paths
