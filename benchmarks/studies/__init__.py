"""Studies of generators, written as JSON to docs/results."""
