"""What a compiled program sends between devices, read from its text: XLA's own count takes a loop's body once."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

_KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?(?P<name>[\w.\-]+) \(.*\{$")
_NAME = re.compile(r"^\s+(?:ROOT )?%?(?P<name>[\w.\-]+) = ")
_ARRAY = re.compile(r"(?P<type>pred|[a-z]+\d+[a-z0-9]*)\[(?P<shape>[\d,]*)\]")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|branch_computations)=\{?(?P<names>%[\w.\-]+(?:, ?%[\w.\-]+)*)")
_TRIPS = re.compile(r'known_trip_count":\{"n":"(?P<trips>\d+)"')
_CHANNEL = re.compile(r"channel_id=(\d+)")
_LIMIT = re.compile(r" = [su]\d+\[\]\S* constant\((?P<limit>\d+)\)")


@dataclass(frozen=True)
class _Operation:
    opcode: str
    size: int  # bytes of the larger of operands and result
    channel: str | None  # of a collective
    called: tuple[str, ...]  # computations
    condition: str | None  # of a loop
    trips: int | None  # of a loop that says so


def collective_bytes(hlo: str) -> dict[str, int]:
    """Bytes that pass each device, by kind of collective, in one run of an optimised HLO module.

    Of a gather that is its result, of a scatter its operand, of a reduction twice its operand (a ring reduces, then
    gathers). Bodies of loops count as often as they run, where the text says how often. What the compiler spreads over
    several operations, to compute meanwhile, keeps one channel and counts once.
    """
    computations = {name: list(_operations(lines)) for name, lines in _computations(hlo)}
    limits = {name: _limit(lines) for name, lines in _computations(hlo)}
    sent: dict[tuple[str, str], int] = {}  # bytes of every kind and channel

    def visit(name: str, times: int) -> None:
        for operation in computations.get(name, ()):
            kind = next((kind for kind in _KINDS if operation.opcode in (kind, f"{kind}-start")), None)
            if kind:
                size = operation.size * times * (2 if kind == "all-reduce" else 1)
                key = (kind, operation.channel or f"unnumbered {len(sent)}")
                sent[key] = max(size, sent.get(key, 0))
            rounds = 1
            if operation.condition is not None:
                rounds = operation.trips or limits.get(operation.condition) or 1
            for called in operation.called:
                visit(called, times * rounds)

    entry = re.search(r"^ENTRY %?([\w.\-]+)", hlo, re.MULTILINE)
    if entry:
        visit(entry[1], 1)
    totals: Counter[str] = Counter()
    for (kind, _), size in sent.items():
        totals[kind] += size
    return dict(totals)


def _computations(hlo: str) -> Iterator[tuple[str, list[str]]]:
    name, lines = None, []
    for line in hlo.splitlines():
        match = _COMPUTATION.match(line)
        if match:
            name, lines = match["name"], []
        elif line == "}" and name is not None:  # a kernel's configuration may begin a line with more of them
            yield name, lines
            name = None
        elif name is not None:
            lines.append(line)


def _operations(lines: list[str]) -> Iterator[_Operation]:
    sizes: dict[str, int] = {}
    for line in lines:
        match = _NAME.match(line)
        if not match:
            continue
        kind, rest = _split_type(line[match.end() :])
        opcode, _, operands = rest.partition("(")
        arrays = [_bytes(array) for array in _ARRAY.finditer(kind)]
        sizes[match["name"]] = sum(arrays)
        given = sum(sizes.get(name, 0) for name in re.findall(r"%([\w.\-]+)", operands.split(")")[0]))
        result = max(arrays, default=0) if opcode.endswith("-start") else sum(arrays)
        called = tuple(name.strip(" %") for m in _CALLED.finditer(rest) for name in m["names"].split(","))
        condition = re.search(r"condition=%?([\w.\-]+)", rest)
        trips, channel = _TRIPS.search(rest), _CHANNEL.search(rest)
        yield _Operation(
            opcode.strip(),
            max(given, result),
            channel[1] if channel else None,
            called,
            condition[1] if condition else None,
            int(trips["trips"]) if trips else None,
        )


def _split_type(text: str) -> tuple[str, str]:
    """A result type, which may be a tuple, and what follows it."""
    if not text.startswith("("):
        kind, _, rest = text.partition(" ")
        return kind, rest
    depth = 0
    for k, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return text[: k + 1], text[k + 2 :]
    return text, ""


def _bytes(array: re.Match) -> int:
    bits = 8 if array["type"] == "pred" else int(re.search(r"\d+", array["type"])[0])
    count = 1
    for size in filter(None, array["shape"].split(",")):
        count *= int(size)
    return count * bits // 8


def _limit(lines: list[str]) -> int | None:
    """The number a loop's condition compares with."""
    found = [int(match["limit"]) for line in lines if (match := _LIMIT.search(line))]
    return max(found, default=None)
