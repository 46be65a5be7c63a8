"""What has a closed form or takes a few fixed steps: the class head, BatchNorm's statistics, refinement."""
