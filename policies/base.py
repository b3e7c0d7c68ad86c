"""The protocol that every policy follows."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Observation = NDArray[np.float32]
Actions = NDArray[np.int64]


class Policy(Protocol):
    """Chooses an arm from the features. Learned, hand-written and learning policies are called in the same way."""

    learns: bool = False
    """Whether it learns while it decodes, so that its texts must be decoded one after the other."""
    looks: bool = True
    """Whether it reads the features. If so, replay charges it for the students that read along (:mod:`dispatch_rl.replay.hindsight`)."""

    def reset(self) -> None:
        """Begin a new text. A policy without memory inherits this and does nothing."""
        return

    def __call__(self, observation: Observation) -> int:
        """Return the action (index of an arm) for an ``observation [features]``."""
        ...

    def update(self, action: int, emitted: int, latency_ms: float) -> None:
        """Learn what the chosen arm did. A policy that does not learn inherits this and does nothing.

        Args:
            action: The arm of the round.
            emitted: Tokens that the round emitted.
            latency_ms: How long it took.
        """
        return

    def batch(self, observations: Observation) -> Actions:
        """Return the actions ``[texts]`` for the ``observations [texts, features]`` of many texts. Faster where it is overridden."""
        return np.array([self(observation) for observation in observations], dtype=np.int64)
