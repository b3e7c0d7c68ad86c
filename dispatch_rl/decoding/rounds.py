"""The record of one round, and what many of them amount to."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dispatch_rl.decoding.arms import NONE


@dataclass(frozen=True)
class Round:
    """One dispatch, draft, verify, commit. Live decoding and replay produce the same record."""

    arm: str
    """Name of the arm, as :attr:`Arm.name`; students joined by ``+`` when a round was dispatched token by token."""
    students: tuple[str, ...]
    """Who drafted each draft token."""
    drafted: tuple[int, ...]
    """Draft tokens (ids)."""
    num_accepted: int
    """Number of leading draft tokens that stood."""
    emitted: tuple[int, ...]
    """Tokens added to the text: the accepted ones and one of the target's, cut after an end-of-sequence token."""
    entropies_nats: tuple[float, ...]
    """The target's entropy at each emitted position, before temperature."""
    draft_ms: float
    """Time of the students' forward passes, catch-up included."""
    verify_ms: float
    """Time of the target's forward pass and the verification."""
    overhead_ms: float
    """The rest of the round."""

    @property
    def latency_ms(self) -> float:
        """Duration of the round."""
        return self.draft_ms + self.verify_ms + self.overhead_ms


def metrics(rounds: Sequence[Round]) -> dict[str, Any]:
    """Return vLLM's speculation metrics over ``rounds``; ratios are ratios of sums.

    ``mean_acceptance_length`` counts the bonus token; ``acceptance_histogram[i]`` counts the rounds with ``i`` accepted tokens.
    """
    emitted = sum(len(r.emitted) for r in rounds)
    drafted = sum(len(r.drafted) for r in rounds)
    accepted = sum(r.num_accepted for r in rounds)
    histogram = Counter(r.num_accepted for r in rounds)
    shares = Counter(r.arm for r in rounds)
    return {
        "num_rounds": len(rounds),
        "num_emitted_tokens": emitted,
        "num_draft_tokens": drafted,
        "num_accepted_tokens": accepted,
        "mean_acceptance_length": emitted / len(rounds) if rounds else float("nan"),
        "draft_acceptance_rate": accepted / drafted if drafted else None,
        "acceptance_histogram": [histogram[i] for i in range(max(histogram, default=0) + 1)],
        "arm_shares": {arm: count / len(rounds) for arm, count in sorted(shares.items())},
    }


def arm_name(students: Sequence[str]) -> str:
    """Return the name of a round by who drafted its tokens."""
    if not students:
        return NONE
    runs = [s for i, s in enumerate(students) if i == 0 or students[i - 1] != s]
    return f"{'+'.join(runs)}-{len(students)}"
