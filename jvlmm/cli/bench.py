"""`jvlmm bench`: measurements as ratios within one run."""

import argparse
from collections.abc import Callable
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
    what = "measure a GRPO step that shares the prompt against one that repeats it for every completion"
    add_of_group(group, "grpo", bench_grpo, what)
    add_of_group(group, "visd", bench_visd, "measure a step with a teacher that has hindsight against one of GRPO")
    add_steering(group)


def add_of_group(group: Any, name: str, run: Callable[[argparse.Namespace], Result], what: str) -> None:
    example = f"jvlmm bench {name} --preset small --prompt 2048 --completion 128 --group 8 --json"
    parser = add_verb(group, name, run, show, what, example)
    parser.add_argument("--preset", default="small", help="shape of the model (default: small)")
    parser.add_argument("--prompt", type=int, default=2048, help="tokens of the prompt and its video (default: 2048)")
    parser.add_argument("--completion", type=int, default=128, help="tokens of each completion (default: 128)")
    parser.add_argument("--group", type=int, default=8, help="completions of the prompt (default: 8)")
    parser.add_argument("--threads", type=int, default=2, help="processor cores of each side (default: 2)")
    parser.add_argument("--rounds", type=int, default=3, help="times each measure is taken (default: 3)")


def add_steering(group: Any) -> None:
    parser = add_verb(
        group,
        "vreason",
        bench_vreason,
        show,
        "measure what V-Reason adds to the price of a token",
        "jvlmm bench vreason --preset small --video-tokens 1024 --json",
    )
    parser.add_argument("--preset", default="small", help="shape of the model (default: small)")
    parser.add_argument("--video-tokens", type=int, default=1024, help="of every row (default: 1024)")
    parser.add_argument("--batch", type=int, default=8, help="rows (default: 8)")
    parser.add_argument("--new-tokens", type=int, default=32, help="written to every row (default: 32)")
    parser.add_argument("--threads", type=int, default=2, help="processor cores of each side (default: 2)")
    parser.add_argument("--rounds", type=int, default=5, help="times each measure is taken (default: 5)")


def bench_vreason(args: argparse.Namespace) -> Result:
    from jvlmm.bench.steered import SteeredWorkload
    from jvlmm.bench.vreason import run

    workload = SteeredWorkload(args.video_tokens, args.batch, new_tokens=args.new_tokens)
    return run(args.preset, workload, threads=args.threads, rounds=args.rounds)


def bench_grpo(args: argparse.Namespace) -> Result:
    from jvlmm.bench.grpo import run

    return bench_group(args, run)


def bench_visd(args: argparse.Namespace) -> Result:
    from jvlmm.bench.visd import run

    return bench_group(args, run)


def bench_group(args: argparse.Namespace, run: Callable[..., Result]) -> Result:
    from jvlmm.bench.group_workload import GroupWorkload

    workload = GroupWorkload(args.prompt, args.completion, args.group)
    return run(args.preset, workload, threads=args.threads, rounds=args.rounds)


def bench_model(args: argparse.Namespace) -> Result:
    from jvlmm.bench.model import run

    return run(args.preset, args.against, threads=args.threads, rounds=args.rounds)


def show(result: Result) -> None:
    from jvlmm.reporting.tables import text_table

    print(f"{result['bench']} on {result['hardware']}")
    print(text_table(["measure", "value", "unit"], [[m["name"], m["value"], m["unit"]] for m in result["measures"]]))
