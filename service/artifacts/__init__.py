"""Artifacts, named by their content: where they are stored, and when they are removed."""
