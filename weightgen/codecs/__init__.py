"""Codecs: the tokens of a network to latents and back."""
