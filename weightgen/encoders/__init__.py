"""Encoders of support sets."""
