"""Recipes: ordered stages over one run directory."""
