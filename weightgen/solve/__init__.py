"""Parts with a closed form or a few fixed steps: the class head, BatchNorm's statistics, refinement."""
