"""JSON files of a checkpoint folder, read with a limit on their size."""

import json
from pathlib import Path
from typing import Any

from jvlmm.errors import CheckpointError

LARGEST_JSON = 64 * 2**20  # bytes; the index of the largest published checkpoint has 0.2 MB


def read_json(path: Path) -> dict[str, Any]:
    """Returns the JSON object of a file; one that is missing, malformed or too large is a CheckpointError."""
    try:
        if path.exists() and not path.is_file():
            raise CheckpointError(f"{path}: is no regular file; restore the file of the checkpoint")
        if path.stat().st_size > LARGEST_JSON:
            raise CheckpointError(f"{path}: is larger than {LARGEST_JSON >> 20} MiB; restore the checkpoint's own file")
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; the checkpoint is incomplete, download it again") from None
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path}: cannot be read as JSON ({reason}); download it again") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(value).__name__}; download it again")
    return value


def optional_json(path: Path) -> dict[str, Any]:
    """Returns the JSON object of a file, and an empty one where there is no such file."""
    return read_json(path) if path.exists() else {}
