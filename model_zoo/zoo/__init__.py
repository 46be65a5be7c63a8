"""Zoos: which tasks are trained on, how networks are trained, and how they are read again."""
