"""Running sums over rounds: what a learner is doing at the moment."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dispatch_rl.decoding.rounds import Round
from dispatch_rl.replay.episodes import Step


class Tally:
    """Sums since the last :meth:`take`; rounds are added one by one (live) or many at once (replay)."""

    def __init__(self, arms: list[str]) -> None:
        self.arms = arms
        self._sums = np.zeros(4)
        self._counts = np.zeros(len(arms), dtype=np.int64)

    def add(self, actions: NDArray[np.int64], step: Step) -> None:
        """Add one round of every episode."""
        self._sums += (step.emitted.sum(), step.latency_ms.sum(), step.num_accepted_tokens.sum(), step.num_draft_tokens.sum())
        self._counts += np.bincount(actions, minlength=len(self.arms))

    def add_round(self, record: Round) -> None:
        """Add one round."""
        self._sums += (len(record.emitted), record.latency_ms, record.num_accepted_tokens, record.num_draft_tokens)
        self._counts[self.arms.index(record.arm)] += 1

    @property
    def latency_ms_per_token(self) -> float:
        """Latency / tokens emitted since the last :meth:`take`."""
        return float(self._sums[1] / max(self._sums[0], 1))

    def take(self) -> dict[str, Any]:
        """Return the metrics under vLLM's names and begin anew."""
        emitted, latency_ms, accepted, drafted = self._sums.tolist()
        rounds = max(int(self._counts.sum()), 1)
        shares = {arm: int(count) / rounds for arm, count in zip(self.arms, self._counts, strict=True) if count}
        self._sums, self._counts = np.zeros(4), np.zeros(len(self.arms), dtype=np.int64)
        return {
            "latency_ms_per_token": latency_ms / max(emitted, 1),
            "draft_acceptance_rate": accepted / max(drafted, 1),
            "mean_acceptance_length": emitted / rounds,
            "arm_shares": shares,
        }

    def state(self) -> dict[str, NDArray[Any]]:
        """Return the sums."""
        return {"tally_sums": self._sums, "tally_counts": self._counts}

    def restore(self, state: dict[str, NDArray[Any]]) -> None:
        """Go on from a :meth:`state`."""
        self._sums, self._counts = state["tally_sums"].copy(), state["tally_counts"].copy()
