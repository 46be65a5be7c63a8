"""From a request to its weights: what can be asked for, what it would give, the job, and the generation itself."""
