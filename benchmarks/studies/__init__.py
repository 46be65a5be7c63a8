"""Studies: what generators are worth, written as JSON in docs/results."""
