"""Protocols, metrics and predictions."""
