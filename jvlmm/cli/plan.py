"""`jvlmm plan`: does a recipe fit on a slice?"""

import argparse
from typing import Any

from jvlmm.cli.verb import Result, add_overrides, add_verb

_COLUMNS = ("devices", "peak_gib", "capacity_gib", "arguments_gib", "temporaries_gib", "roofline_s", "roofline_mfu", "compile_s")


def add_parser(verbs: Any) -> None:
    parser = add_verb(
        verbs,
        "plan",
        plan,
        show,
        "compile a recipe's programs for a slice that is not here; exit 1 where a device lacks memory",
        "jvlmm plan configs/sft_qwen2_5_vl_7b.py --topology v5p:4x4x4 sft.batch_size=128",
    )
    parser.add_argument("config", metavar="CONFIG", help="a Python file with one function recipe()")
    parser.add_argument("--topology", required=True, help="such as v5e:16x16, v5p:4x4x4, v6e:8x8")
    parser.add_argument("--text-only", action="store_true", help="as if no example had images or videos")
    parser.set_defaults(status=lambda result: 0 if all(p["fits"] for p in result["programs"]) else 1)
    add_overrides(parser, "values that replace those of the recipe")


def plan(args: argparse.Namespace) -> Result:
    from jvlmm.recipes.planning import plan_recipe

    return plan_recipe(args.config, args.topology, tuple(args.overrides), media=not args.text_only)


def show(result: Result) -> None:
    from jvlmm.reporting.tables import text_table

    how = "" if result["by"] == "compilation" else "; by arithmetic: nothing was compiled"
    print(f"{result['topology']}: {result['devices']} devices; figures of one{how}")
    rows = [[p["name"], "yes" if p["fits"] else "no", *(p[c] for c in _COLUMNS)] for p in result["programs"]]
    print(text_table(["program", "fits", *_COLUMNS], rows))
    for program in result["programs"]:
        if not program["fits"]:
            print(f"{program['name']}: {program['advice']}")
