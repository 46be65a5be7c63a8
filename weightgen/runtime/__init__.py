"""What a process shares: random numbers, memory, threads."""
