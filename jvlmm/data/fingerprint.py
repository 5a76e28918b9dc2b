"""What tells one data set from another when a run goes on: its files, how many rows they give, a hash of these."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from jvlmm.data.example import Example
from jvlmm.errors import DataError


def data_fingerprint(examples: Sequence[Example]) -> list[dict[str, Any]]:
    """Returns JSON-ready [{"file", "rows", "sha256"}], the examples of one file after those of another.

    A sequence with a `fingerprint` of its own says it; else every example is read and hashed, its media by their names
    as seen from the file, so that a data set which is moved stays the same. Media themselves are not read.
    """
    known = getattr(examples, "fingerprint", None)
    if known is not None:
        return known
    digests: dict[str, Any] = {}
    rows: dict[str, int] = {}
    folders: dict[str, str] = {}
    for example in examples:
        file = example.origin.rpartition(":")[0]
        if file not in digests:
            digests[file], rows[file] = hashlib.sha256(), 0
            folders[file] = os.path.realpath(os.path.dirname(file) or ".") if file else "/"
        digests[file].update(_content(example, folders[file]))
        rows[file] += 1
    return [{"file": file, "rows": rows[file], "sha256": digests[file].hexdigest()} for file in digests]


def check_same_data(saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises DataError where a position was saved for other data than there are now; names what differs.

    Both are {"examples": their number, "seed", "files": what `data_fingerprint` gives}. How files are called and where
    they lie may change. A position saved before there were fingerprints has no files, which are then not compared.
    """
    remedy = "restore the data and seed of that run, or start a new run directory"
    changed = _changed(saved.get("files", now["files"]), now["files"])
    for name in ("examples", "seed"):
        if saved.get(name) != now[name]:
            raise DataError(
                f"the saved position is for {name}={saved.get(name)}, the data now has {name}={now[name]}{changed}; "
                f"{remedy}"
            )
    if changed:
        raise DataError(f"the saved position is for other data{changed}; {remedy}")


def _changed(saved: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]) -> str:
    """What is said of the first file that is not as it was; "" where all are."""
    for before, after in zip(saved, now, strict=False):
        if (before["rows"], before["sha256"]) != (after["rows"], after["sha256"]):
            counts = f"{before['rows']} usable rows then, {after['rows']} now"
            return f": {after['file'] or 'the rows'} changed since ({counts}; sha256 {before['sha256'][:8]} then, " + (
                f"{after['sha256'][:8]} now)"
            )
    return f": {len(saved)} files then, {len(now)} now" if len(saved) != len(now) else ""


def example_digest(example: Example) -> str:
    """What tells an example from another, its media by where they lie; 16 hexadecimal digits."""
    return hashlib.sha256(_content(example, os.sep)).hexdigest()[:16]


def _content(example: Example, folder: str) -> bytes:
    """What an example says, as bytes."""
    values = {name: value for name, value in vars(example).items() if name not in ("origin", "media", "earlier")}
    values["media"] = [(m.type, os.path.relpath(m.path, folder), m.start, m.end) for m in example.media]
    values["earlier"] = [_content(turn, folder).decode("ascii") for turn in example.earlier]
    return json.dumps(values, default=str).encode("ascii") + b"\n"
