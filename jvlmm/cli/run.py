"""`jvlmm run`: a recipe over one run directory."""

import argparse
from pathlib import Path
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
    add_overrides(parser, "values that replace those of the recipe")


def run(args: argparse.Namespace) -> Result:
    from jvlmm.recipes.runner import run_recipe

    return run_recipe(args.config, args.workdir, tuple(args.overrides))


def show(result: Result) -> None:
    from jvlmm.reporting.tables import compare, text_table

    titles = {"tiou": "mean tIoU of spans", "box_iou": "mean IoU of boxes", "format_rate": "in the asked format"}
    columns = {
        stage: {
            **figures["accuracy"],
            **{title: figures[name] for name, title in titles.items() if figures.get(name) is not None},
        }
        for stage, figures in result["evaluations"].items()
    }
    if columns:
        print(text_table(*compare(columns)))
    for name, stage in result["stages"].items():
        print(f"{name}: {Path(result['workdir']) / stage['path']}  ({stage['seconds']} s)")
    print(f"everything lies in {result['workdir']}")
