"""`jvlmm compare`: two evaluations of the same questions, question by question."""

import argparse
from typing import Any

from jvlmm.cli.verb import Result, add_verb


def add_parser(verbs: Any) -> None:
    parser = add_verb(
        verbs,
        "compare",
        run,
        show,
        "compare two evaluations of the same questions",
        "jvlmm compare runs/first/predictions/before.jsonl runs/first/predictions/after_sft.jsonl",
    )
    for name, which in (("first", "the one to compare with"), ("second", "the one that may be better")):
        parser.add_argument(
            name, metavar=name.upper(), help=f"a file of predictions, or what `jvlmm eval` wrote; {which}"
        )
    parser.add_argument("--flips", type=int, metavar="N", default=10, help="questions to list (default: 10)")


def run(args: argparse.Namespace) -> Result:
    from jvlmm.evaluation.comparison import compare, read_predictions

    result = compare(read_predictions(args.first), read_predictions(args.second))
    return {"first": args.first, "second": args.second, "shown": args.flips, **result}


def show(result: Result) -> None:
    from jvlmm.reporting.tables import text_table

    rows = []
    for name, group in result["groups"].items():
        low, high = group["interval"]
        changed = f"+{group['gained']} -{group['lost']}"
        told = (f"{group['difference']:+.3f}", f"[{low:+.3f}, {high:+.3f}]", changed, f"{group['p']:.3g}")
        rows.append([name, group["n"], group["first"], group["second"], *told])
    print(f"first:  {result['first']}\nsecond: {result['second']}")
    print(text_table(["", "n", "first", "second", "change", "95 % interval", "flips", "McNemar p"], rows))
    for flip in result["flips"][: result["shown"]]:
        print(
            f"{flip['change']}: {flip['id']} ({flip['question_type']}): gold {flip['gold']!r}, "
            f"first {flip['first']!r}, second {flip['second']!r}"
        )
    hidden = len(result["flips"]) - result["shown"]
    if hidden > 0:
        print(f"{hidden} more flips: --flips {len(result['flips'])}, or --json for all")
    for which in ("first", "second"):
        left_out = result[f"only_{which}"]
        if left_out:
            print(f"left out: {len(left_out)} questions that only the {which} has, such as {left_out[0]}")
