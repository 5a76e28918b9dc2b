"""Metric writers, progress and tables."""
