"""The entry point: parse, run the verb, turn every outcome into an exit status."""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from jvlmm import __version__
from jvlmm.cli import bench, compare, convert, data, evaluate, generate, plan, run, vreason
from jvlmm.errors import JvlmmError
from jvlmm.json_text import json_text
from jvlmm.termination import EXIT_CODE, received, terminable

VERBS = (run, evaluate, compare, generate, data, convert, plan, vreason, bench)


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="jvlmm",
        description="Post-training of video large multimodal models in JAX.",
        epilog="`jvlmm VERB --help` shows an example of each verb.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"jvlmm {__version__}")
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    for verb in VERBS:
        verb.add_parser(verbs)
    return parser


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse `argv`. Overrides `a.b=c` may stand anywhere among the options, which argparse alone does not allow."""
    parser = build_parser()
    args, rest = parser.parse_known_args(argv)
    strange = [argument for argument in rest if argument.startswith("-") or "=" not in argument]
    if strange or (rest and not hasattr(args, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(strange or rest)}")
    if rest:
        args.overrides = [*args.overrides, *rest]
    return args


def prepare_environment() -> None:
    """Defaults of libraries that read the environment when they are imported; what the user set stays."""
    if (cache := cache_directory()) is not None:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # that PyTorch is not installed is no news


def cache_directory() -> Path | None:
    """Where compiled programs are kept between commands; None where the user has no directory that can be written."""
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jvlmm" / "compilations"
        cache.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: no HOME, and no entry in the list of users
        return None
    return cache if os.access(cache, os.W_OK) else None


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    0 done; 1 failed, with one line on stderr; 2 wrong usage; 130 interrupted; 141 the reader of a pipe went away;
    143 terminated, after open files and worker processes were closed.
    """
    with terminable():
        try:
            return run_verb(argv)
        except BaseException:  # what libraries make of Terminated may be another error
            if received():
                return EXIT_CODE
            raise


def run_verb(argv: Sequence[str] | None) -> int:
    """What `main` does between its signals."""
    args = parse(argv)
    prepare_environment()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a name in a data set may hold what the terminal cannot show
            stream.reconfigure(errors="backslashreplace")
    try:
        result = args.run(args)
        if result is None:  # this is one of several processes, and the first reports
            return 0
        if args.json:
            print(json_text(result))
        else:
            args.show(result)
        sys.stdout.flush()
        return args.status(result)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes once more at exit
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        print("jvlmm: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except Exception as error:
        if args.debug or received():
            raise
        print(f"jvlmm: error: {describe(error)}", file=sys.stderr)
        return 1


def describe(error: Exception) -> str:
    """One line for the user; an error not written for one names its class and how to see more."""
    text = " ".join(str(error).split())
    if isinstance(error, JvlmmError):
        return text
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}; free space or choose another directory, and run again"
    return f"unexpected {type(error).__name__}: {text}; run again with --debug for the traceback"
