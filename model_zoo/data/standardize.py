"""Features with mean 0 and deviation 1."""

import numpy as np
from numpy.typing import NDArray


def standardize(parts: dict[str, NDArray]) -> dict[str, NDArray]:
    """Parts (n, d) standardised by mean and deviation of "train"; a feature that is constant there is only shifted."""
    mean = parts["train"].mean(0, dtype=np.float64)
    deviation = parts["train"].std(0, dtype=np.float64)
    deviation[deviation == 0] = 1
    return {part: ((x - mean) / deviation).astype(np.float32) for part, x in parts.items()}
