"""Rows to examples to token sequences to device batches."""
