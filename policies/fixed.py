"""Policies that do not look."""

import numpy as np
from numpy.typing import NDArray

from dispatch_rl.policies.base import Policy


class FixedPolicy(Policy):
    """Always the same arm."""

    def __init__(self, action: int) -> None:
        self.action = action

    def __call__(self, observation: NDArray[np.float32]) -> int:
        return self.action


class RandomPolicy(Policy):
    """Any arm, all equally likely."""

    def __init__(self, num_actions: int, seed: int) -> None:
        self.num_actions = num_actions
        self._rng = np.random.default_rng(seed)

    def __call__(self, observation: NDArray[np.float32]) -> int:
        return int(self._rng.integers(self.num_actions))
