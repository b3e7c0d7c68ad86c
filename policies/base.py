"""The protocol that every policy follows."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Policy(Protocol):
    """Chooses an arm from the features. Learned and hand-written policies are called in the same way."""

    def reset(self) -> None:
        """Begin a new text. A policy without memory inherits this and does nothing."""
        return

    def __call__(self, observation: NDArray[np.float32]) -> int:
        """Return the action (index of an arm) for an ``observation [features]``."""
        ...
