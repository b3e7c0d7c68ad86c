"""The features of a draft: what a dispatcher knows before the next draft token, besides :mod:`dispatch_rl.decoding.features`.

The same rule holds: a feature is admitted only if the runtime knows it at that moment. What a student said of its last token is known;
what another would say of the same text is not.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dispatch_rl.decoding.arms import LOOKUP
from dispatch_rl.decoding.features import Feature

_CLEAR_NATS = 20.0
"""A margin where nothing is unclear: nothing was drafted, or by prompt lookup, which has no margins."""


class Clarity(NamedTuple):
    """How sure a student was of a token when it drafted it."""

    margin: float
    """How clear the choice was (nats), as :attr:`dispatch_rl.decoding.arms.Arm.min_margin`."""
    entropy_nats: float
    """The student's own entropy, before temperature."""


def draft_feature_table(students: Sequence[str], missing: Collection[str] = ()) -> tuple[Feature, ...]:
    """Return the features of a draft for a family with these ``students``, in the order of the observation.

    Args:
        students: Names, from cheap to expensive.
        missing: ``margin`` or ``entropy`` where a recording does not tell them of every student; features that come from them are off.
    """
    table = (
        Feature("draft_length", "tokens", 0, 255, 8, "tokens of the draft"),
        Feature("draft_left", "1", 0, 255, 8, "decisions to draft on that may follow before the draft is verified"),
        Feature("draft_passed", "1", 0, 1, 1, "1 if the last decision found nothing to draft"),
        Feature("draft_entropy", "nats", 0, 12, 1, "own entropy of whoever drafted the last token; 0 without a student", "entropy"),
        Feature("draft_entropy_sum", "nats", 0, 64, 4, "sum of these entropies over the draft", "entropy"),
        Feature("draft_margin", "nats", 0, _CLEAR_NATS, 5, "how clear the choice of the last token was; 20 without a student", "margin"),
        Feature("draft_least_margin", "nats", 0, _CLEAR_NATS, 5, "the least of these margins in the draft; 20 without any", "margin"),
    )
    last = (Feature(f"drafted_by_{s}", "1", 0, 1, 1, f"1 if '{s}' drafted the last token") for s in (*students, LOOKUP))
    unread = (
        Feature(f"unread_{s}", "tokens", 0, 256, 16, f"tokens before the last that '{s}' has not read, drafted too") for s in students
    )
    return (*(feature for feature in table if feature.column not in missing), *last, *unread)


class DraftTracker:
    """Keeps the features of a draft up to date, for live decoding and for replay.

    Args:
        students: Names, from cheap to expensive.
        missing: As for :func:`draft_feature_table`.
    """

    def __init__(self, students: Sequence[str], missing: Collection[str] = ()) -> None:
        self.drafters = (*students, LOOKUP)
        self.table = draft_feature_table(students, missing)
        self._has_entropy, self._has_margin = "entropy" not in missing, "margin" not in missing
        self._bounds = [(f.low, f.high) for f in self.table]
        self.start(0)

    def start(self, left: int) -> None:
        """Begin a draft of at most ``left`` decisions."""
        self.left = left
        """Decisions that may follow before the draft is verified."""
        self._length, self._passed = 0, False
        self._last: str | None = None
        self._entropy = self._entropy_sum = 0.0
        self._margin = self._least_margin = _CLEAR_NATS

    def add(self, drafter: str, clarity: Clarity | None) -> None:
        """Take in a draft token, and how sure a student was of it; None for prompt lookup, or if it is not known."""
        self.left -= 1
        self._length, self._passed, self._last = self._length + 1, False, drafter
        self._margin, self._entropy = (_CLEAR_NATS, 0.0) if clarity is None else clarity
        self._entropy_sum += self._entropy
        self._least_margin = min(self._least_margin, self._margin)

    def skip(self) -> None:
        """Take in a decision that found nothing to draft."""
        self.left -= 1
        self._passed = True

    def observation(self, unread: Sequence[int]) -> NDArray[np.float32]:
        """Return the features ``[features]``, finite and within the table's bounds.

        Args:
            unread: How many tokens before the last one of text and draft each student has not read.
        """
        values: list[float] = [self._length, self.left, self._passed]
        values += [self._entropy, self._entropy_sum] if self._has_entropy else []
        values += [self._margin, self._least_margin] if self._has_margin else []
        values += [*(name == self._last for name in self.drafters), *unread]
        clipped = [min(max(value, low), high) for value, (low, high) in zip(values, self._bounds, strict=True)]
        return np.array(clipped, dtype=np.float32)
