"""What every verb has in common: help with an example, `--json`, `--debug`."""

import argparse
from collections.abc import Callable
from typing import Any

Result = dict[str, Any]  # JSON-ready


def add_verb(
    verbs: Any,
    name: str,
    run: Callable[[argparse.Namespace], Result | None],
    show: Callable[[Result], None],
    summary: str,
    example: str,
) -> argparse.ArgumentParser:
    """Add one verb to `verbs` (what `add_subparsers` returned) and return its parser for the verb's own arguments.

    `run` does the work and returns a JSON-ready result; `show` prints it for a reader, unless `--json` asks for
    the result itself. None stands for a result that another process reports. Imports of JAX belong inside `run`:
    help must not wait for them.
    """
    parser = verbs.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object on the last line")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(run=run, show=show, status=lambda result: 0)
    return parser


def add_group(verbs: Any, name: str, summary: str) -> Any:
    """Add a verb that has verbs of its own, and return what takes them."""
    parser = verbs.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
    return parser.add_subparsers(metavar="VERB", required=True)


def add_overrides(parser: argparse.ArgumentParser, summary: str) -> None:
    """Let the verb take `a.b=c` anywhere among its arguments, as `args.overrides`."""
    parser.add_argument("overrides", metavar="a.b=c", nargs="*", help=summary)
