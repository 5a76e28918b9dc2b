"""Stages that make what a run needs before it can train: the embedded data set, and a model from scratch."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

from jvlmm.data.moving_shapes import MovingShapesOptions, caption_examples, load
from jvlmm.data.prompts import render
from jvlmm.recipes.recipe import Run


@dataclass(frozen=True)
class BuildMovingShapes:
    """Draw, encode and annotate Moving Shapes; the result is the folder NAME, for `Source.path`."""

    name: str = "data"
    options: MovingShapesOptions = field(default_factory=MovingShapesOptions)

    def run(self, run: Run) -> dict[str, Any]:
        from jvlmm.data.moving_shapes import build

        counts = build(run.workdir / self.name, self.options)
        return {"path": self.name, "examples": counts}


@dataclass(frozen=True)
class NewModel:
    """A model with random weights and a byte-level BPE learned from a data set, as a Hugging Face folder."""

    name: str = "new"
    preset: str = "tiny"
    data: str = "stage:data"
    vocab_size: int = 1024
    pixels: tuple[int, int] = (784, 7056)  # fewest and most of an image, written into its processor's settings
    timestamps: str = "{:.1f}"  # see ProcessorOptions; written there, too

    def run(self, run: Run) -> dict[str, Any]:
        import jax

        from jvlmm.data.bpe import train_tokenizer
        from jvlmm.data.processor_files import write_timestamps
        from jvlmm.data.tokenizer import ChatTokenizer
        from jvlmm.models.huggingface import save_checkpoint
        from jvlmm.models.presets import PRESETS
        from jvlmm.models.qwen2_5_vl import init_params

        folder = run.workdir / "models" / self.name
        tokenizer_folder = run.workdir / "models" / f"{self.name}-tokenizer"
        train_tokenizer(texts(run.resolve(self.data)), self.vocab_size, tokenizer_folder, *self.pixels)
        write_timestamps(tokenizer_folder, self.timestamps)
        tokenizer = ChatTokenizer.from_pretrained(tokenizer_folder)
        preset = PRESETS[self.preset]
        config = replace(
            preset,
            text=replace(preset.text, vocab_size=tokenizer.length),
            tokens=tokenizer.special_tokens,
            scan_layers=False,
        )
        params = init_params(config, jax.random.key(run.seed))
        save_checkpoint(folder, params, config, dtype="float32", source_dir=tokenizer_folder)
        return {"path": f"models/{self.name}", "parameters": sum(x.size for x in jax.tree.leaves(params))}


@dataclass(frozen=True)
class AddNeighbourLayer:
    """A model with one more decoder layer, which looks at neighbouring tokens: letters of options are learnt sooner."""

    name: str = "neighbours"
    model: str = ""  # a Hugging Face folder, or stage:NAME

    def run(self, run: Run) -> dict[str, Any]:
        import jax

        from jvlmm.models.execution import for_training
        from jvlmm.models.huggingface import load_config, load_params, save_checkpoint
        from jvlmm.models.neighbour_layer import with_neighbour_layer

        source, folder = run.resolve(self.model), run.workdir / "models" / self.name
        config = for_training(load_config(source), "cpu")  # layers unrolled
        params, config = with_neighbour_layer(load_params(source, config), config, jax.random.key(run.seed))
        save_checkpoint(folder, params, config, dtype="float32", source_dir=source)
        return {"path": f"models/{self.name}", "layers": config.text.num_layers}


def texts(root: Path, limit: int = 8000) -> Iterator[str]:
    """What is said in the training split: turn headers, prompts in both styles, chains of thought and captions."""
    for example in chain(load(root, "train", limit=limit), caption_examples(root, "train", limit=limit)):
        yield from ("system\nYou are a helpful assistant.", "user\n", "assistant\n")
        for style in ("direct", "think"):
            for message in render(example, style):
                yield from (item["text"] for item in message["content"] if item["type"] == "text")
        yield example.response
