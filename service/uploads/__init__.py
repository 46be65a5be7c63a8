"""Data sets that users bring: taken, read apart, kept by what they hold."""
