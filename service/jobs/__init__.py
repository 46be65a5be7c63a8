"""Jobs that survive a crash: the database, and the threads that run them."""
