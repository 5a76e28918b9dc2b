"""`jvlmm convert`: Hugging Face folders to Orbax checkpoints, and back."""

import argparse
from typing import Any

from jvlmm.cli.verb import Result, add_group, add_verb


def add_parser(verbs: Any) -> None:
    group = add_group(verbs, "convert", "turn checkpoints into another format")
    parser = add_verb(
        group,
        "from-hf",
        from_hf,
        show,
        "write the weights of a Hugging Face folder as an Orbax checkpoint",
        "jvlmm convert from-hf models/Qwen2.5-VL-3B-Instruct weights/3b --dtype float32",
    )
    parser.add_argument("source", metavar="HF_DIR", help="a Hugging Face checkpoint folder")
    parser.add_argument("target", metavar="OUT", help="the new folder")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16", help="default: bfloat16")
    parser.add_argument("--scan-layers", action="store_true", help="stack the blocks' parameters over layers")
    parser = add_verb(
        group,
        "to-hf",
        to_hf,
        show,
        "write an Orbax checkpoint, such as one of an unfinished training run, as a Hugging Face folder",
        "jvlmm convert to-hf runs/first/checkpoints/sft exported --like models/Qwen2.5-VL-3B-Instruct",
    )
    parser.add_argument("source", metavar="CHECKPOINT", help="RUN/checkpoints/STAGE, or what from-hf wrote")
    parser.add_argument("target", metavar="OUT", help="the folder to write; transformers opens it")
    parser.add_argument("--like", metavar="HF_DIR", help="the folder the training began from; not needed after from-hf")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16", help="default: bfloat16")


def from_hf(args: argparse.Namespace) -> Result:
    from jvlmm.models.huggingface.convert import from_huggingface

    return from_huggingface(args.source, args.target, param_dtype=args.dtype, scan_layers=args.scan_layers)


def to_hf(args: argparse.Namespace) -> Result:
    from jvlmm.models.huggingface.convert import to_huggingface

    return to_huggingface(args.source, args.target, source_dir=args.like, dtype=args.dtype)


def show(result: Result) -> None:
    print(f"{result['parameters']:,} parameters written to {result['path']}")
