"""The process in which a chat template is rendered: jinja2 alone, in a sandbox, with limits the system enforces.

A template is a program of whoever made the checkpoint. It may loop for ever or ask for all memory inside one
instruction, where no Python thread can stop it; a process can be ended.
"""

import json
import resource
import signal
import sys
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

LARGEST_OUTPUT = 2**24  # characters of one conversation


class _Generation(jinja2.ext.Extension):
    """`{% generation %}…{% endgeneration %}`, with which templates mark what the assistant says: the text alone."""

    tags = frozenset({"generation"})

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def environment() -> ImmutableSandboxedEnvironment:
    """Returns what transformers gives chat templates: its trimming, filters and globals."""
    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    made.filters["tojson"] = _tojson
    made.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
    return made


def serve(cpu_seconds: float, memory_bytes: int) -> None:
    """Reads requests from standard input, a JSON object a line, and answers each with one, until the input ends.

    The first line holds `template` and `variables`; every other one `messages` and `add_generation_prompt`, and is
    answered with `text` or `error`. The process ends by SIGPROF where an answer takes longer than `cpu_seconds`.
    """
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    first = json.loads(sys.stdin.readline())
    template: jinja2.Template | None = None
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
        try:
            if template is None:
                template = environment().from_string(first["template"])
            text = template.render(tools=None, documents=None, **first["variables"], **json.loads(line))
            if len(text) > LARGEST_OUTPUT:
                raise ValueError(f"the text has over {LARGEST_OUTPUT} characters")
            answer = {"text": text}
            del text
        except Exception as error:  # noqa: BLE001 - whatever a template does is an answer
            answer = {"error": f"{type(error).__name__}: {str(error)[:200]}".rstrip(": ")}
        encoded = json.dumps(answer)
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.write(encoded + "\n")
        sys.stdout.flush()


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.exceptions.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)
