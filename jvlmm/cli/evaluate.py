"""`jvlmm eval`: a model's figures on a dataset, and its answer to every question."""

import argparse
from typing import Any

from jvlmm.cli.steering import add_vreason, asked
from jvlmm.cli.verb import Result, add_overrides, add_verb


def add_parser(verbs: Any) -> None:
    parser = add_verb(
        verbs,
        "eval",
        run,
        show,
        "score a model on a dataset",
        "jvlmm eval --model runs/first/models/sft --data runs/first/data --split test --protocol think",
    )
    parser.add_argument("--model", metavar="DIR", required=True, help="a Hugging Face checkpoint folder")
    parser.add_argument("--adapter", metavar="DIR", help="a LoRA adapter of PEFT, merged into the model as it is read")
    parser.add_argument("--data", metavar="DIR|JSONL", required=True, help="a built dataset, or examples as JSONL")
    parser.add_argument("--split", default="test", help="of a built dataset (default: test)")
    parser.add_argument(
        "--protocol", choices=["think", "direct"], help="how to ask (default: as it was trained, else think)"
    )
    parser.add_argument(
        "--root", metavar="DIR", default="", help="holds the media of a JSONL file (default: its folder)"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="the first N examples only")
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="for results.json and predictions/ (default: a new folder in runs/eval that names model and data)",
    )
    add_vreason(parser)
    add_overrides(parser, "options of the stage, such as vision.frames.fps=1 batch_size=16 sampling.max_tokens=512")


def run(args: argparse.Namespace) -> Result | None:
    import os

    from jvlmm.sharding.hosts import from_first, joined, process_index

    with joined(os.environ):
        result = from_first("evaluation", lambda: evaluate(args))
        return result if process_index() == 0 else None


def evaluate(args: argparse.Namespace) -> Result:
    """The figures and where the predictions lie."""
    from dataclasses import replace

    from jvlmm.cli.options import names_set
    from jvlmm.config import apply_overrides, naming_options, to_json
    from jvlmm.evaluation.results import claim_directory, give_back, write_results
    from jvlmm.recipes.evaluating import Evaluate
    from jvlmm.recipes.recipe import Run
    from jvlmm.recipes.sources import Source
    from jvlmm.rollout.generation_config import checkpoint_sampling
    from jvlmm.training.host_memory import keep_freed_memory_on_cpu

    keep_freed_memory_on_cpu()
    stage = Evaluate(
        name="eval",
        model=args.model,
        adapter=args.adapter or "",
        sources=(Source(args.data, split=args.split, limit=args.limit, root=args.root),),
        protocol=args.protocol or trained_protocol(args.model, args.adapter),
        vreason=asked(args),
    )
    stage = apply_overrides(stage, args.overrides)
    sampling = checkpoint_sampling(stage.sampling, args.model, names_set(args.overrides, "sampling"))
    stage = replace(stage, sampling=sampling)
    out = claim_directory(args.out, args.model, args.data, to_json(stage))
    try:
        with naming_options(stage):
            result = stage.run(Run(out, seed=0))
        results = write_results(out, {stage.name: result["evaluation"]})
    finally:
        give_back(out)
    return {**result["evaluation"], "predictions": str(out / result["path"]), "results": str(results)}


def trained_protocol(model: str, adapter: str | None) -> str:
    """How the checkpoint learnt to be asked; think where it does not say."""
    from jvlmm.data.processor_files import checkpoint_processing

    return {"direct": "direct", "describe": "direct"}.get(
        checkpoint_processing(model, adapter).style or "think", "think"
    )


def show(result: Result) -> None:
    from jvlmm.reporting.tables import text_table

    groups = [("overall", *(result[figure]["overall"] for figure in ("accuracy", "counts", "interval")))]
    for kind in ("question", "answer"):
        for name, group in result[f"{kind}_types"].items():
            groups.append((f"{kind} type {name}", group["accuracy"], group["n"], group["interval"]))
    rows = [[name, accuracy, n, "[{:.3f}, {:.3f}]".format(*interval)] for name, accuracy, n, interval in groups]
    print(text_table(["", "accuracy", "n", "95 % interval"], rows))
    shares = {"parsed_rate": "can be read as one of their type"}
    if result["protocol"] == "think":
        shares = {"format_rate": "have the form that counts, a thought and then an answer", **shares}
    for name, what in shares.items():
        if result[name] is not None and result[name] < 1:
            print(f"{result[name]:.0%} of the answers {what}")
    for name, value in (("mean tIoU of spans", result["tiou"]), ("mean IoU of boxes", result["box_iou"])):
        if value is not None:
            print(f"{name}: {value:.3f}")
    for failure in result["failed"]:
        print(f"failed: {failure['error']}")
    if result.get("reduced"):
        print(
            f"{result['reduced']} rows were shown fewer frames or pixels than asked for, as more do not fit or are not "
            "there; predictions tell which"
        )
    print(f"every answer: {result['predictions']}")
    print(f"figures by question and answer type: {result['results']}")
