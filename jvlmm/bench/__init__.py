"""Measurements: one function per `jvlmm bench` verb, every figure a ratio within one run."""
