"""Logs and measurements of requests and jobs."""
