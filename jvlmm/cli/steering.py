"""The arguments `--vreason`, `--lite` and `--vreason-file`, which several verbs take."""

import argparse
from typing import TYPE_CHECKING

from jvlmm.errors import ConfigError

if TYPE_CHECKING:
    from jvlmm.test_time.vreason import VReasonOptions


def add_vreason(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--vreason", action="store_true", help="steer by entropy while it answers; see vreason.*")
    parser.add_argument("--lite", action="store_true", help="with --vreason, on half of the video tokens")
    parser.add_argument("--vreason-file", metavar="JSON", help="with --vreason, its options as a file")


def asked(args: argparse.Namespace) -> "VReasonOptions | None":
    """The options that the arguments ask for, before overrides; ConfigError where they do not go together."""
    from dataclasses import replace
    from pathlib import Path

    from jvlmm.config import from_json
    from jvlmm.test_time.vreason import LiteOptions, VReasonOptions

    if not args.vreason:
        for name, given in (("--lite", args.lite), ("--vreason-file", args.vreason_file)):
            if given:
                raise ConfigError(f"{name} is a part of V-Reason; add --vreason, or leave it out")
        return None
    options = VReasonOptions()
    if args.vreason_file:
        options = from_json(VReasonOptions, Path(args.vreason_file).read_text(encoding="utf-8"))
    return replace(options, lite=options.lite or LiteOptions()) if args.lite else options
