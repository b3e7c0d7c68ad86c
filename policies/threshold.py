"""The baseline: the previous token's entropy decides who drafts."""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from dispatch_rl.config import ThresholdConfig
from dispatch_rl.decoding.arms import ArmTable
from dispatch_rl.decoding.features import feature_table
from dispatch_rl.errors import UserError
from dispatch_rl.policies.base import Actions, Observation, Policy

DEFAULT_LIMITS = (0.4, 0.8)


class ThresholdPolicy(Policy):
    """Action ``actions[i]`` where ``i`` limits are at or below the entropy.

    With limits 0.4 and 0.8 nats and three students: the first below 0.4, the second from 0.4 on, the third from 0.8 on.
    """

    looks = False

    def __init__(self, limits: Sequence[float], actions: Sequence[int], entropy_index: int = 0) -> None:
        if any(not low < high for low, high in pairwise(limits)) or not all(limit >= 0 for limit in limits):
            raise UserError(f"threshold.limits: {list(limits)} must rise and not be negative, as [0.4, 0.8] does")
        if len(actions) != len(limits) + 1:
            raise UserError(
                f"threshold.limits: {len(limits)} limits part the entropies for {len(limits) + 1} students, not for {len(actions)}"
            )
        self.limits = tuple(limits)
        self.actions = tuple(actions)
        self._entropy_index = entropy_index

    @staticmethod
    def is_possible(config: ThresholdConfig, students: Sequence[str], arms: ArmTable) -> bool:
        """Return whether there is a student to choose, or whether one is asked for."""
        return config.students is not None or any(arm.student in students for arm in arms)

    @classmethod
    def from_config(cls, config: ThresholdConfig, students: Sequence[str], arms: ArmTable) -> "ThresholdPolicy":
        """Build the policy over the first arm of each of its students.

        Raises:
            UserError: Limits out of order, a wrong number of them, or a student without an arm.
        """
        drafting = {arm.student for arm in arms}
        names = [name for name in students if name in drafting] if config.students is None else config.students
        if config.students is None and config.limits is None and len(names) > len(DEFAULT_LIMITS) + 1:
            names = [names[0], names[len(names) // 2], names[-1]]
        if config.limits is None and len(names) > len(DEFAULT_LIMITS) + 1:
            raise UserError(
                f"threshold.limits: {len(names)} students need {len(names) - 1} limits; the usual ones, 0.4 and 0.8, part three"
            )
        limits = list(DEFAULT_LIMITS[: len(names) - 1]) if config.limits is None else config.limits
        entropy_index = [feature.name for feature in feature_table(students)].index("entropy")
        return cls(limits, [arms.first_of(name) for name in names], entropy_index)

    def __call__(self, observation: Observation) -> int:
        return self.actions[bisect_right(self.limits, float(observation[self._entropy_index]))]

    def batch(self, observations: Observation) -> Actions:
        regions = np.searchsorted(self.limits, observations[:, self._entropy_index].astype(np.float64), side="right")
        return np.array(self.actions)[regions]
