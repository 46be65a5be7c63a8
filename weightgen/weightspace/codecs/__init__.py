"""Codecs: from tokens to a few numbers and back."""
