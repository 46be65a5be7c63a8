"""Artifacts by content: where they lie, how they are answered, when they go."""
