"""The graph of any module, from its structure alone."""
