"""What reads a condition: encoders of support sets."""
