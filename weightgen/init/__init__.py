"""Weights for any module at hand, and the report that says where each tensor came from."""
