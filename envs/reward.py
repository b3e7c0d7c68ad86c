"""The reward of a round, the same for live decoding and replay."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dispatch_rl.decoding.rounds import Round
from dispatch_rl.replay.episodes import Step


@dataclass(frozen=True)
class Reward:
    """``(tokens * reference - latency) / reference + weight * accepted / drafted``, clipped.

    In units of the reference: a token that costs nothing earns 1, one that takes as long as the reference earns 0. Without the
    acceptance term and the clipping, the sum over a text is its length minus its latency in such units.
    """

    reference_ms_per_token: float
    """Latency that earns nothing: live, the target alone; in replay, the best fixed arm."""
    acceptance_weight: float = 0.0
    """Weight of the share of accepted draft tokens."""
    clip: float = float("inf")
    """Largest absolute reward."""

    def latency_term(self, record: Round) -> float:
        """Return what the round earned by being fast (tokens)."""
        return len(record.emitted) - record.latency_ms / self.reference_ms_per_token

    def acceptance_term(self, record: Round) -> float:
        """Return what the round earned by accepted drafts."""
        return self.acceptance_weight * record.num_accepted / len(record.drafted) if record.drafted else 0.0

    def __call__(self, record: Round) -> float:
        """Return the reward of ``record``."""
        reward = self.latency_term(record) + self.acceptance_term(record)
        return max(-self.clip, min(self.clip, reward))

    def of_step(self, latency_ms: float, record: Round | None) -> tuple[float, float, float]:
        """Return the reward of a part of a round that took ``latency_ms``, and its terms: being fast (tokens), and accepted drafts.

        Args:
            latency_ms: Time of this part.
            record: The round, if this part ended it: all its tokens are credited then.
        """
        fast = (0 if record is None else len(record.emitted)) - latency_ms / self.reference_ms_per_token
        accepted = 0.0 if record is None else self.acceptance_term(record)
        return max(-self.clip, min(self.clip, fast + accepted)), fast, accepted

    def batch(self, step: Step) -> NDArray[np.float64]:
        """Return the rewards of the rounds of many episodes ``[episodes]``."""
        rewards = step.emitted - step.latency_ms / self.reference_ms_per_token
        if self.acceptance_weight:
            rewards += self.acceptance_weight * step.accepted / np.maximum(step.drafted, 1)
        clipped: NDArray[np.float64] = np.clip(rewards, -self.clip, self.clip)
        return clipped
