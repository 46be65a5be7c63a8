"""Checkpoints that others trained and published."""
