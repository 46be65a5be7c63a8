"""From a request to its weights: the names it can use, what it would give, its job, and the generation itself."""
