"""Makes `toy_training` importable by the tests and by the processes they start."""

import sys
from pathlib import Path

from drawn_model import config, params, processor, tokenizer, without_eos  # noqa: F401

sys.path.insert(0, str(Path(__file__).parent))
