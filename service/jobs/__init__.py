"""Jobs that survive: the table, the threads that run them, and how a process stops."""
