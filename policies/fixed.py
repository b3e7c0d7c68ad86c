"""Policies that do not look."""

import numpy as np

from dispatch_rl.policies.base import Actions, Observation, Policy


class FixedPolicy(Policy):
    """Always the same arm."""

    looks = False

    def __init__(self, action: int) -> None:
        self.action = action

    def __call__(self, observation: Observation) -> int:
        return self.action

    def batch(self, observations: Observation) -> Actions:
        return np.full(len(observations), self.action)


class RandomPolicy(Policy):
    """Any arm, all equally likely."""

    looks = False

    def __init__(self, num_actions: int, seed: int) -> None:
        self.num_actions = num_actions
        self._rng = np.random.default_rng(seed)

    def __call__(self, observation: Observation) -> int:
        return int(self._rng.integers(self.num_actions))

    def batch(self, observations: Observation) -> Actions:
        return self._rng.integers(self.num_actions, size=len(observations))
