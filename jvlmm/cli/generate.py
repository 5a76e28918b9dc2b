"""`jvlmm generate`: one answer to one question about any files."""

import argparse
from typing import Any

from jvlmm.cli.steering import add_vreason, asked
from jvlmm.cli.verb import Result, add_overrides, add_verb


class AppendMedia(argparse.Action):
    """Collects `--video` and `--image` in the order given, which is the order the model sees."""

    def __call__(self, parser, namespace, values, option_string=None):
        namespace.media = (*namespace.media, (option_string.removeprefix("--"), values))


def add_parser(verbs: Any) -> None:
    parser = add_verb(
        verbs,
        "generate",
        run,
        show,
        "answer a question about videos and images",
        'jvlmm generate --model runs/first/models/sft --video holiday.mp4 "What is the dog doing?" frames.fps=1',
    )
    parser.add_argument("question", metavar="QUESTION", help="may place its files with <video> and <image>")
    parser.add_argument("--model", metavar="DIR", required=True, help="a Hugging Face checkpoint folder")
    parser.add_argument("--adapter", metavar="DIR", help="a LoRA adapter of PEFT, merged into the model as it is read")
    for kind in ("video", "image"):
        parser.add_argument(f"--{kind}", metavar="FILE", dest="media", action=AppendMedia, default=(), help="a file")
    parser.add_argument(
        "--think",
        action=argparse.BooleanOptionalAction,
        help="ask for <think>…</think><answer>…</answer> (default: as it was trained)",
    )
    add_vreason(parser)
    add_overrides(parser, "options, such as frames.fps=1 sampling.temperature=0.7 sampling.seed=1")


def run(args: argparse.Namespace) -> Result:
    from jvlmm.cli.answer import answer
    from jvlmm.data.example import Media

    media = [Media(kind, path) for kind, path in args.media]
    return answer(args.model, media, args.question, args.think, args.overrides, asked(args), args.adapter)


def show(result: Result) -> None:
    print(result["text"])
