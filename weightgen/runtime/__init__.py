"""State that a whole process shares: random numbers, memory."""
