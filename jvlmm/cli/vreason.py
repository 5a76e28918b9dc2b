"""`jvlmm vreason`: choose V-Reason's options without answers, and draw what it does to entropy."""

import argparse
from typing import Any

from jvlmm.cli.verb import Result, add_group, add_overrides, add_verb


def add_parser(verbs: Any) -> None:
    group = add_group(verbs, "vreason", "calibrate V-Reason, and draw the entropy of answers")
    add_calibrate(group)
    add_plot(group)


def add_calibrate(group: Any) -> None:
    parser = add_verb(
        group,
        "calibrate",
        calibrate,
        show_calibration,
        "choose lr, beta and k by the entropy of answers to unlabelled questions",
        "jvlmm vreason calibrate --model DIR --data train.jsonl --out vreason.json lr=0.001,0.003,0.01 k=2",
    )
    parser.add_argument("--model", metavar="DIR", required=True, help="a Hugging Face checkpoint folder")
    parser.add_argument("--data", metavar="DIR|JSONL", required=True, help="questions; their answers are not read")
    parser.add_argument("--split", default="train", help="of a built dataset (default: train)")
    parser.add_argument("--out", metavar="JSON", default="vreason.json", help="for --vreason-file of other verbs")
    add_overrides(parser, "options, such as lr=0.001,0.01 beta=0.95 k=2 questions=64 sampling.max_tokens=512")


def add_plot(group: Any) -> None:
    parser = add_verb(
        group,
        "plot",
        plot,
        show_plot,
        "draw the mean entropy per token of traced answers, with the band of its mean",
        "jvlmm vreason plot traces/vreason.plain.jsonl traces/vreason.jsonl --out curves.svg",
    )
    parser.add_argument("traces", metavar="TRACE", nargs="+", help="files of traces/, a curve each")
    parser.add_argument("--out", metavar="SVG", default="curves.svg", help="the file to write (default: curves.svg)")


def calibrate(args: argparse.Namespace) -> Result:
    from pathlib import Path

    from jvlmm.config import apply_overrides, naming_options
    from jvlmm.errors import ConfigError
    from jvlmm.recipes.calibrating import Calibrate
    from jvlmm.recipes.recipe import Run
    from jvlmm.recipes.sources import Source
    from jvlmm.training.host_memory import keep_freed_memory_on_cpu

    out = Path(args.out)
    if out.suffix != ".json":
        raise ConfigError(f"--out {args.out}: the options are written as JSON; name a file that ends in .json")
    keep_freed_memory_on_cpu()
    stage = Calibrate(name=out.stem, model=args.model, sources=(Source(args.data, split=args.split),))
    stage = apply_overrides(stage, args.overrides)
    with naming_options(stage):
        result = stage.run(Run(out.parent, seed=0))
    files = {"path": str(out), "traces": [str(out.parent / trace) for trace in result["traces"]]}
    return {**result, **files}


def show_calibration(result: Result) -> None:
    from jvlmm.reporting.tables import text_table

    columns = ("lr", "beta", "k", "peak", "end", "output_tokens", "finished_rate", "skipped_updates", "distance")
    rows = [[f"{row[columns[0]]:g}", *(row[column] for column in columns[1:])] for row in result["sweep"]]
    print(text_table(columns, rows))
    plain = result["plain"]
    print(f"plain decoding: peak {plain['peak']:.3f}, end {plain['end']:.3f} nats, distance {plain['distance']:.3f}")
    print(f"chosen: {' '.join(f'{name}={value:g}' for name, value in result['chosen'].items())}")
    print(f"written to {result['path']}; curves: jvlmm vreason plot {' '.join(result['traces'])}")


def plot(args: argparse.Namespace) -> Result:
    from pathlib import Path

    from jvlmm.recipes.steering import entropy_chart, read_entropies
    from jvlmm.test_time.entropy_curves import curve_of

    stems = [Path(path).stem for path in args.traces]
    names = stems if len(set(stems)) == len(stems) else args.traces
    curves = {name: curve_of(read_entropies(path)) for name, path in zip(names, args.traces, strict=True)}
    out = Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(entropy_chart(curves), encoding="utf-8")
    figures = {
        name: {"questions": curve.questions, "peak": round(curve.peak, 4), "end": round(curve.end, 4)}
        for name, curve in curves.items()
    }
    return {"path": args.out, "curves": figures}


def show_plot(result: Result) -> None:
    from jvlmm.reporting.tables import text_table

    columns = ("questions", "peak", "end")
    rows = [[name, *(figures[column] for column in columns)] for name, figures in result["curves"].items()]
    print(text_table(["nats", *columns], rows))
    print(f"written to {result['path']}")
