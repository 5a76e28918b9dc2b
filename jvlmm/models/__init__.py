"""Flax Linen models as pure functions of parameter pytrees."""
