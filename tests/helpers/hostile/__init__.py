"""Checkpoint files made to do harm, each of which must be refused with one clear sentence."""
