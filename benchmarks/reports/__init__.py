"""Reports: figures of docs/results/*.json as tables and pictures."""
