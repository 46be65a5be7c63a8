"""Delivery: the gate that checks weights, and the artifact folder that is handed over."""
