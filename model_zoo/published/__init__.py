"""Checkpoints that other people trained and published."""
