"""Zoos: their tasks, the training of their networks, and how they are read again."""
