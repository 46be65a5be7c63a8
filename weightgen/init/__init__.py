"""Weights for any module, and the report that says where each tensor came from."""
