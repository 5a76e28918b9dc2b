"""Jitted prefill and decoding over a key-value cache, and logits processors."""
