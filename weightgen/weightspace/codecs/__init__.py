"""Codecs: tokens to a few numbers and back."""
