"""The record of one round, and what many of them amount to."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dispatch_rl.decoding.arms import NONE

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Round:
    """One dispatch, draft, verify, commit. Live decoding and replay produce the same record."""

    arm: str
    """Name of the arm, as :attr:`Arm.name`; students joined by ``+`` when a round was dispatched token by token."""
    students: tuple[str, ...]
    """Who drafted each draft token."""
    drafted: tuple[int | None, ...]
    """Draft tokens (ids); None where replay does not know what a student would have drafted off the path."""
    num_accepted: int
    """Number of leading draft tokens that stood."""
    emitted: tuple[int | None, ...]
    """Tokens added to the text: the accepted ones and one of the target's, cut after an end-of-sequence token; None
    in the replay of a recording without tokens."""
    entropies_nats: tuple[float, ...]
    """The target's entropy at each emitted position, before temperature; empty in the replay of a recording without entropies."""
    draft_ms: float
    """Time of the students' forward passes, catch-up included."""
    verify_ms: float
    """Time of the target's forward pass and the verification."""
    overhead_ms: float
    """The rest of the round."""
    num_hedges: int = 0
    """Second choices that were judged beside the draft."""
    hedge_stood: bool = False
    """Whether one of them stood, so that one token more was emitted."""

    @property
    def num_draft_tokens(self) -> int:
        """Draft tokens, second choices included."""
        return len(self.drafted) + self.num_hedges

    @property
    def num_accepted_tokens(self) -> int:
        """Draft tokens that stood, a second choice included."""
        return self.num_accepted + self.hedge_stood

    @property
    def latency_ms(self) -> float:
        """Duration of the round."""
        return self.draft_ms + self.verify_ms + self.overhead_ms


@dataclass(frozen=True)
class RoundTable:
    """Rounds of many texts, column by column; live decoding and replay both end up here. Every array is ``[rounds]``."""

    text: Ints
    """Number of the text that the round belongs to."""
    arm: NDArray[np.str_]
    """Name of the arm."""
    position: Ints
    """Emitted tokens before the round."""
    drafted: Ints
    """Draft tokens, second choices included."""
    accepted: Ints
    """Draft tokens that stood, second choices included."""
    emitted: Ints
    """Tokens added to the text."""
    latency_ms: NDArray[np.float64]
    """Duration of the round."""
    entropy_nats: NDArray[np.float64]
    """The target's entropy at the token before the round; NaN if unknown."""

    def __len__(self) -> int:
        return len(self.text)

    @classmethod
    def of(cls, texts: Sequence[tuple[Sequence[Round], Sequence[float]]]) -> "RoundTable":
        """Return the table of some texts, each given by its rounds and the entropies before them. The first token is no round's."""
        rows = [
            (i, r.arm, before, r.num_draft_tokens, r.num_accepted_tokens, len(r.emitted), r.latency_ms, entropy)
            for i, (rounds, entropies) in enumerate(texts)
            for r, before, entropy in zip(rounds, accumulate((len(r.emitted) for r in rounds), initial=1), entropies, strict=False)
        ]
        columns = list(zip(*rows, strict=True)) or [()] * 8
        types = (np.int64, np.str_, np.int64, np.int64, np.int64, np.int64, np.float64, np.float64)
        return cls(*(np.array(column, dtype=kind) for column, kind in zip(columns, types, strict=True)))


def metrics(rounds: RoundTable) -> dict[str, Any]:
    """Return vLLM's speculation metrics over ``rounds``; ratios are ratios of sums.

    ``mean_acceptance_length`` counts the bonus token; ``acceptance_histogram[i]`` counts the rounds with ``i`` accepted tokens.
    """
    emitted, drafted, accepted = (int(column.sum()) for column in (rounds.emitted, rounds.drafted, rounds.accepted))
    arms, counts = np.unique(rounds.arm, return_counts=True)
    return {
        "num_rounds": len(rounds),
        "num_emitted_tokens": emitted,
        "num_draft_tokens": drafted,
        "num_accepted_tokens": accepted,
        "mean_acceptance_length": emitted / len(rounds) if len(rounds) else float("nan"),
        "draft_acceptance_rate": accepted / drafted if drafted else None,
        "acceptance_histogram": np.bincount(rounds.accepted, minlength=1).tolist(),
        "arm_shares": {str(arm): int(count) / len(rounds) for arm, count in zip(arms, counts, strict=True)},
    }


def arm_name(students: Sequence[str]) -> str:
    """Return the name of a round by who drafted its tokens."""
    if not students:
        return NONE
    runs = [s for i, s in enumerate(students) if i == 0 or students[i - 1] != s]
    return f"{'+'.join(runs)}-{len(students)}"
