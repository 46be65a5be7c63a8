"""Measurements: speed as ratios (`python -m benchmarks`), studies, the service under load, and their reports."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
"""Root folder of the checkout."""
