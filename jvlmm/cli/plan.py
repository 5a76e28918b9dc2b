"""`jvlmm plan`: does a recipe fit on a slice?"""

import argparse
from typing import Any

from jvlmm.cli.verb import Result, add_overrides, add_verb
from jvlmm.errors import ConfigError

_COLUMNS = (
    "devices",
    "peak_gib",
    "capacity_gib",
    "arguments_gib",
    "temporaries_gib",
    "roofline_s",
    "roofline_mfu",
    "compile_s",
)
_SEARCHED = ("batch_size", "remat", "peak_gib", "capacity_gib", "roofline_by", "roofline_mfu", "compile_s")
_LEFT_OUT = {
    "refused": "do not suit the recipe",
    "arguments_too_large": "have arguments that alone do not fit",
    "pruned": "are larger than one that does not fit",
    "left_out": "were left out, as arithmetic puts them behind (--compiles)",
}


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
    parser.add_argument(
        "--topology",
        required=True,
        help="such as v5e:16x16, v5p:4x4x4, 2xv6e:8x8 (two slices); h100:8 and other GPUs by arithmetic alone",
    )
    parser.add_argument("--text-only", action="store_true", help="as if no example had images or videos")
    parser.add_argument(
        "--search", action="store_true", help="try batch sizes, remat and meshes for SFT; the fastest that fit first"
    )
    parser.add_argument("--compiles", type=int, metavar="N", help="programs a search compiles a stage (16)")
    parser.add_argument(
        "--batch-sizes",
        metavar="N,N",
        help="rows a search tries (a quarter to four times the recipe's, and a few more)",
    )
    parser.set_defaults(status=status)
    add_overrides(parser, "values that replace those of the recipe")


def plan(args: argparse.Namespace) -> Result:
    from jvlmm.recipes.fitting import plan_with_remedies
    from jvlmm.recipes.searching import SearchOptions, search_recipe

    common = args.config, args.topology, tuple(args.overrides), not args.text_only
    if args.search:
        given = {} if args.compiles is None else {"compiles": args.compiles}
        return search_recipe(*common, SearchOptions(**given, batch_sizes=_sizes(args.batch_sizes)))
    if args.compiles is not None or args.batch_sizes is not None:
        raise ConfigError("--compiles and --batch-sizes say how a search goes; add --search, or leave them out")
    return plan_with_remedies(*common)


def status(result: Result) -> int:
    """1 where a program does not fit; of a search where no candidate of a stage does."""
    if "search" not in result:
        return 0 if all(program["fits"] for program in result["programs"]) else 1
    fitting = {program["stage"] for program in result["programs"] if program["fits"]}
    return 0 if fitting == {search["stage"] for search in result["search"]} else 1


def show(result: Result) -> None:
    from jvlmm.reporting.tables import text_table

    how = "" if result["by"] == "compilation" else "; by arithmetic: nothing was compiled"
    print(f"{result['topology']}: {result['devices']} devices; figures of one{how}")
    for search in result.get("search", ()):
        _show_search(search, [program for program in result["programs"] if program["stage"] == search["stage"]])
    if "search" in result:
        return
    rows = [[p["name"], "yes" if p["fits"] else "no", *(p[c] for c in _COLUMNS)] for p in result["programs"]]
    print(text_table(["program", "fits", *_COLUMNS], rows))
    for program in result["programs"]:
        if not program["fits"]:
            print(f"{program['name']}: {program['advice']}")
    for stage, overrides in result["fitting"].items():
        print(f"{stage} fits, by arithmetic, with {' '.join(overrides)}")


def _show_search(search: dict[str, Any], programs: list[dict[str, Any]]) -> None:
    """A stage's candidates, best first, and what to type for the best."""
    from jvlmm.reporting.tables import text_table

    rows = []
    for program in programs:
        mesh = " ".join(f"{axis}={size}" for axis, size in program["mesh"].items() if size > 1) or "one device"
        seconds = f"{program['seconds_per_sample']:.3g}"
        rows.append([mesh, "yes" if program["fits"] else "no", seconds, *(program[c] for c in _SEARCHED)])
    if rows:
        print(text_table(["mesh", "fits", "seconds_per_sample", *_SEARCHED], rows))
    told = [f"{search[name]} {what}" for name, what in _LEFT_OUT.items() if search[name]]
    told = [f"of {search['candidates']} candidates {len(programs)} are shown", *told]
    print(f"{search['stage']}: {'; '.join(told)}")
    if rows and programs[0]["fits"]:
        print(f"{search['stage']}: the best is {' '.join(programs[0]['overrides'])}")
    else:
        print(f"{search['stage']}: nothing fits; take a larger slice, shorter length_buckets, lora, or --batch-sizes")


def _sizes(text: str | None) -> tuple[int, ...]:
    try:
        return tuple(int(size) for size in text.split(",")) if text else ()
    except ValueError:
        raise ConfigError(f"--batch-sizes {text!r}: give numbers of rows, such as 32,64") from None
