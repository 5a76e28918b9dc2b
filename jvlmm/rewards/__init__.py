"""Parsing and scoring of answers: pure functions of strings and gold records."""
