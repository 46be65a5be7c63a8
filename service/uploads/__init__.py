"""Data sets that users upload: received, read by a separate process, stored by their content."""
