"""`jvlmm bench`: measurements as ratios within one run."""

import argparse
from typing import Any

from jvlmm.cli.verb import Result, add_group, add_verb


def add_parser(verbs: Any) -> None:
    group = add_group(verbs, "bench", "measure speed and memory")
    parser = add_verb(
        group,
        "model",
        bench_model,
        show,
        "measure the model against another implementation: same weights, same batch, same threads",
        "jvlmm bench model --preset small --against transformers --json",
    )
    parser.add_argument("--preset", default="small", help="shape of the model (default: small)")
    parser.add_argument("--against", choices=["transformers"], default="transformers", help="the other implementation")
    parser.add_argument("--threads", type=int, default=2, help="processor cores of each side (default: 2)")
    parser.add_argument("--rounds", type=int, default=7, help="times each measure is taken (default: 7)")


def bench_model(args: argparse.Namespace) -> Result:
    from jvlmm.bench.model import run

    return run(args.preset, args.against, threads=args.threads, rounds=args.rounds)


def show(result: Result) -> None:
    from jvlmm.reporting.tables import text_table

    print(f"{result['bench']} on {result['hardware']}")
    print(text_table(["measure", "value", "unit"], [[m["name"], m["value"], m["unit"]] for m in result["measures"]]))
