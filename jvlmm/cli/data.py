"""`jvlmm data`: build the embedded dataset, look at one file, check a file of examples."""

import argparse
from typing import Any

from jvlmm.cli.verb import Result, add_group, add_overrides, add_verb


def add_parser(verbs: Any) -> None:
    group = add_group(verbs, "data", "build, inspect and check data")
    add_build(group)
    add_inspect(group)
    add_check(group)
    add_convert(group)


def add_build(group: Any) -> None:
    parser = add_verb(
        group,
        "build",
        build_dataset,
        show_build,
        "draw, encode and annotate the embedded dataset",
        "jvlmm data build moving-shapes --out data/moving-shapes seed=1",
    )
    parser.add_argument("dataset", choices=["moving-shapes"], help="which dataset")
    parser.add_argument("--out", metavar="DIR", required=True, help="the folder to write")
    add_overrides(parser, "options, such as seed=1 train=2000")


def add_inspect(group: Any) -> None:
    parser = add_verb(
        group,
        "inspect",
        inspect_file,
        show_inspection,
        "show what the model would see of one video or image",
        "jvlmm data inspect holiday.mp4 frames.fps=1",
    )
    parser.add_argument("file", metavar="FILE", help="a video or an image")
    parser.add_argument(
        "--model", metavar="DIR", help="frames and pixels as this Hugging Face checkpoint asks for them"
    )
    add_overrides(parser, "options, such as frames.num_frames=16 pixels.video_max_pixels=200704")


def add_check(group: Any) -> None:
    parser = add_verb(
        group,
        "check",
        check_file,
        show_check,
        "read every example of a file, open its media and list what cannot be used",
        "jvlmm data check train.jsonl --model models/Qwen2.5-VL-3B-Instruct",
    )
    parser.add_argument("file", metavar="FILE", help="examples in the neutral JSONL format")
    parser.add_argument("--model", metavar="DIR", help="count tokens too, as this Hugging Face checkpoint does")
    parser.add_argument("--max-length", type=int, default=8192, help="tokens a row may have (default: 8192)")
    parser.add_argument("--root", metavar="DIR", help="holds the media, where the file's folder does not")
    add_overrides(parser, "options, such as view=answer style=direct frames.fps=1 pixels.video_max_pixels=100352")
    parser.set_defaults(status=usable_status)


def add_convert(group: Any) -> None:
    parser = add_verb(
        group,
        "convert",
        convert_file,
        show_conversion,
        "write another dataset's annotations as a file of examples",
        "jvlmm data convert json_data/STGR-RL.json --from stgr --media videos --out train.jsonl",
    )
    parser.add_argument("file", metavar="FILE", help="the annotations")
    parser.add_argument("--from", dest="kind", choices=["stgr"], required=True, help="stgr: Open-o3-Video's files")
    parser.add_argument("--media", metavar="DIR", required=True, help="where its media lie")
    parser.add_argument("--out", metavar="FILE", required=True, help="the file to write, in a folder that holds DIR")
    parser.add_argument(
        "--root", metavar="ROOT", help="holds DIR and all that it links to; paths are written from there, not from FILE"
    )
    parser.set_defaults(status=usable_status)


def usable_status(result: Result) -> int:
    """Exit status 1 where no row of a file can be used."""
    return 0 if result.get("usable", result["examples"]) else 1


def convert_file(args: argparse.Namespace) -> Result:
    from pathlib import Path

    from jvlmm.data.check import grouped
    from jvlmm.data.records import write_examples
    from jvlmm.data.rejections import Rejections
    from jvlmm.data.stgr import read_stgr

    records, list_path = read_stgr(args.file, args.media, args.root), Path(f"{args.out}.rejected.jsonl")
    written = write_examples(args.out, records.examples, args.root)
    list_path.unlink(missing_ok=True)
    rejections = Rejections(list_path)
    for rejected in records.rejected:
        rejections.add(rejected)
    return {
        "path": args.out,
        "examples": written,
        "rejected": len(records.rejected),
        "rejected_path": str(list_path),
        "reasons": grouped(records.rejected),
    }


def show_conversion(result: Result) -> None:
    print(f"{result['examples']} examples written to {result['path']}")
    show_reasons(result["reasons"])
    if result["rejected"]:
        print(f"{result['rejected']} rows cannot be used; {result['rejected_path']} says why")


def show_reasons(reasons: list[dict[str, Any]]) -> None:
    """A line for every kind of reason, with its count and the first ids."""
    from jvlmm.json_text import printable

    for group in reasons:
        times = "" if group["count"] == 1 else f"{group['count']} rows, such as "
        print(f"{times}{printable(group['reason'], limit=500)} (id {first_ids(group['ids'], group['count'])})")


def first_ids(ids: list[str], count: int) -> str:
    """The first five ids, and how many of the `count` rows come after them."""
    from jvlmm.json_text import printable

    more = count - len(ids[:5])
    return ", ".join(map(printable, ids[:5])) + (f" and {more} more" if more else "")


def build_dataset(args: argparse.Namespace) -> Result:
    from jvlmm.config import apply_overrides
    from jvlmm.data.moving_shapes import MovingShapesOptions, build

    counts = build(args.out, apply_overrides(MovingShapesOptions(), args.overrides))
    return {"path": args.out, "examples": counts}


def show_build(result: Result) -> None:
    from jvlmm.reporting.tables import text_table

    names = ("clips", "images", "questions")
    rows = [[split, *(counts[name] for name in names)] for split, counts in result["examples"].items()]
    print(text_table(["", *names], rows))
    print(f"written to {result['path']}")


def inspect_file(args: argparse.Namespace) -> Result:
    from jvlmm.cli.options import MediaOptions
    from jvlmm.config import apply_overrides
    from jvlmm.video.budget import DEFAULT_PIXELS
    from jvlmm.video.inspect import inspect_media
    from jvlmm.video.overrides import overriding, overriding_pixels
    from jvlmm.video.sampling import DEFAULT_FRAMES

    options = apply_overrides(MediaOptions(), args.overrides)
    frames, pixels = DEFAULT_FRAMES, DEFAULT_PIXELS
    if args.model is not None:
        from jvlmm.data.processor_files import checkpoint_processing

        asked = checkpoint_processing(args.model)
        frames, pixels = overriding(asked.frames, frames), overriding_pixels(asked.pixels, pixels)
    return inspect_media(
        args.file,
        frames=overriding(options.frames, frames),
        pixels=overriding_pixels(options.pixels, pixels),
        limits=options.limits,
    )


def show_inspection(result: Result) -> None:
    from jvlmm.video.inspect import format_inspection

    print(format_inspection(result))


def check_file(args: argparse.Namespace) -> Result:
    import sys
    from dataclasses import replace
    from pathlib import Path

    from jvlmm.config import apply_overrides
    from jvlmm.data.check import MediaOptions, data_check
    from jvlmm.recipes.sources import CheckOptions, Source, rows_of
    from jvlmm.rewards.scoring import agrees
    from jvlmm.video.budget import DEFAULT_PIXELS
    from jvlmm.video.overrides import overriding, overriding_pixels
    from jvlmm.video.sampling import DEFAULT_FRAMES

    options = CheckOptions(max_length=args.max_length)
    options = apply_overrides(options, args.overrides)
    source = Source(
        args.file,
        view=options.view,
        answer_types=options.answer_types,
        limit=options.limit,
        coordinates=options.coordinates,
    )
    rows = rows_of(Path(args.file), source, args.root)
    if args.model is None:
        media = MediaOptions(
            options.style or "think",
            overriding(options.frames, DEFAULT_FRAMES),
            overriding_pixels(options.pixels, DEFAULT_PIXELS),
            options.limits,
        )
        return data_check(args.file, rows=rows, media=media, agrees=agrees)
    from jvlmm.data.processor import Processor
    from jvlmm.data.processor_files import Processing, checkpoint_processing, difference, processor_options
    from jvlmm.data.tokenizer import ChatTokenizer
    from jvlmm.models.huggingface import load_config
    from jvlmm.video.workers import Decoder

    style = options.style or checkpoint_processing(args.model).style or "think"
    set_here = replace(Processing.set_by(options), coordinates=options.answer_coordinates)  # its own are of the rows
    asked = processor_options(args.model, style, options.max_length, set_here, fit=options.fit)
    if told := difference(args.model, asked):
        print(told, file=sys.stderr, flush=True)
    config, tokenizer = load_config(args.model), ChatTokenizer.from_pretrained(args.model)
    with Decoder(workers=2, limits=options.limits) as decoder:
        return data_check(args.file, Processor(tokenizer, config, asked, decoder), rows=rows, agrees=agrees)


def show_doubts(ids: list[str], what: str) -> None:
    """A line on usable rows that are hardly meant so, with the first ids."""
    if ids:
        print(f"{len(ids)} usable rows have {what} (id {first_ids(ids, len(ids))})")


def show_check(result: Result) -> None:
    show_reasons(result["reasons"])
    for name in ("visual_tokens", "tokens"):
        for bound, count in result[name].items():
            print(f"{count:>8} examples of up to {bound} {name.replace('_', ' ')}")
    if result["without_response"]:
        print(
            f"{result['without_response']} usable rows have no response: SFT leaves them out unless it learns bare "
            "answers (view=answer of their source); evaluation and GRPO need none"
        )
    show_doubts(result["disagree"], "a response that gives another answer than the row")
    for key, ids in result["misspelt"].items():
        show_doubts(ids, f"a key that is no field: {key}")
    show_doubts(result["unscorable"], "an answer that is none of its type: evaluation and GRPO cannot score them")
    print(f"{result['examples']} examples, {result['usable']} usable")
