"""The small model and its processor."""

from drawn_model import config, params, processor, tokenizer, without_eos  # noqa: F401
