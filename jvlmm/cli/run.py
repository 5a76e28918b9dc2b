"""`jvlmm run`: a recipe over one run directory."""

import argparse
from typing import Any

from jvlmm.cli.verb import Result, add_overrides, add_verb


def add_parser(verbs: Any) -> None:
    parser = add_verb(
        verbs,
        "run",
        run,
        show,
        "run a recipe, or resume it where it stopped",
        "jvlmm run configs/quickstart.py --workdir runs/first seed=1",
    )
    parser.add_argument("config", metavar="CONFIG", help="a Python file with one function recipe()")
    parser.add_argument("--workdir", metavar="DIR", help="the run directory (default: the recipe's own)")
    parser.add_argument(
        "--no-memory-check", action="store_true", help="run also where the plan finds too little memory on a GPU or TPU"
    )
    add_overrides(parser, "values that replace those of the recipe")


def run(args: argparse.Namespace) -> Result | None:
    import os

    from jvlmm.recipes.runner import run_recipe
    from jvlmm.sharding.hosts import joined, process_index
    from jvlmm.training.checkpoints import silence_failed_writes

    if not args.debug:
        silence_failed_writes()
    with joined(os.environ):
        result = run_recipe(args.config, args.workdir, tuple(args.overrides), memory_check=not args.no_memory_check)
        return result if process_index() == 0 else None


def show(result: Result) -> None:
    from jvlmm.reporting.tables import compare, text_table

    if result["evaluations"]:
        print(text_table(*compare({name: figures_of(stage) for name, stage in result["evaluations"].items()})))
    for name, stage in result["stages"].items():
        if "path" in stage:
            print(f"{name + ':':<12} {result['workdir']}/{stage['path']}")
        if stage.get("rejected"):
            print(f"{name}: {stage['rejected']} rows could not be used; {result['workdir']}/rejected.jsonl says why")
    print(f"everything lies in {result['workdir']}")


def figures_of(evaluation: Result) -> dict[str, float]:
    """Accuracies by group, and the mean IoUs where there are any."""
    ious = {f"mean {name}": evaluation.get(name) for name in ("tiou", "box_iou")}
    return {**evaluation["accuracy"], **{name: value for name, value in ious.items() if value is not None}}
