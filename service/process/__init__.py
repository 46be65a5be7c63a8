"""The life of a server process: its temporary folder, its health check, how it stops, and how its workers follow."""
