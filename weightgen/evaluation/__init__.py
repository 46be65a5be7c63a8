"""Measurement: training and fine-tuning, the scoreboard, novelty, distance between tasks."""
