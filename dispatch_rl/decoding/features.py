"""The features: what a dispatcher knows before a round. This table is the only place that knows them.

A feature is admitted only if the runtime can know it before drafting. What concerns the target is its distribution at the previous
token; what concerns a student is what decoding itself has seen of it.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dispatch_rl.decoding.lookup import LONGEST_MATCH
from dispatch_rl.decoding.rounds import Round
from dispatch_rl.errors import UserError

AVERAGE_DECAY = 0.8
"""Weight of the past in the moving average of the entropy, per token."""
ACCEPTANCE_DECAY = 0.9
"""Weight of the past in a student's moving acceptance, per draft token."""
ACCEPTANCE_PRIOR = 0.5
"""A student's moving acceptance before it has drafted."""
HINDSIGHT_DECAYS = (0.8, 0.95)
"""Weights of the past in the moving shares of tokens that a student would have got right, per token."""
ENTROPY_BUCKETS_NATS = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 12.0)
"""Edges of the buckets in which tables and figures sort entropies."""


@dataclass(frozen=True)
class Feature:
    """One number of the observation, clipped to ``[low, high]``."""

    name: str
    unit: str
    low: float
    high: float
    scale: float
    """A network divides the feature by this, so that a usual value is about one."""
    meaning: str
    column: str | None = None
    """Column of a recording that replay takes it from; None if it follows from the rounds alone."""


_TARGET_FEATURES = (
    Feature("entropy", "nats", 0, 12, 1, "target's entropy where it chose the previous token", "entropy"),
    Feature("entropy_mean", "nats", 0, 12, 1, "moving average of that entropy over the tokens (decay 0.8)", "entropy"),
    Feature("top1_probability", "1", 0, 1, 1, "target's largest probability at the previous token", "top1_probability"),
    Feature("margin", "nats", 0, 20, 5, "difference of the target's two largest logits at the previous token", "margin"),
    Feature("accepted_fraction", "1", 0, 1, 1, "accepted / drafted in the last round; 0 if nothing was drafted"),
    Feature("lookup_match", "tokens", 0, LONGEST_MATCH, 2, "longest end of the text that stood there before", "lookup_match"),
    Feature("position", "1", 0, 1, 1, "share of the longest possible text that is written"),
)


def feature_table(students: Sequence[str], missing: Collection[str] = ()) -> tuple[Feature, ...]:
    """Return the features of a family with these ``students``, in the order of the observation.

    Args:
        students: Names, from cheap to expensive.
        missing: Columns that a recording lacks; features that come from them are off. Such a recording can only be replayed, so there
            are features in their place that replay alone knows, those of :mod:`dispatch_rl.replay.hindsight`.
    """
    acceptance = (
        Feature(f"acceptance_{s}", "1", 0, 1, 1, f"moving share of accepted draft tokens of '{s}' (decay 0.9, first 0.5)") for s in students
    )
    lag = (Feature(f"lag_{s}", "tokens", 0, 256, 16, f"committed tokens that the cache of '{s}' is behind") for s in students)
    hindsight = tuple(_hindsight(s, decay) for s in students for decay in HINDSIGHT_DECAYS) if missing else ()
    return (*(feature for feature in _TARGET_FEATURES if feature.column not in missing), *acceptance, *lag, *hindsight)


def _hindsight(student: str, decay: float) -> Feature:
    meaning = f"moving share of tokens that '{student}' would have got right, up to where that is known (decay {decay:g}, first 0.5)"
    return Feature(f"right_{decay:g}_{student}", "1", 0, 1, 1, meaning)


def position_index(features: Sequence[Feature], name: str) -> int:
    """Return where the feature ``name`` stands in the observation.

    Raises:
        UserError: It is off.
    """
    for index, feature in enumerate(features):
        if feature.name == name:
            return index
    raise UserError(f"features: '{name}' is needed, but the recording lacks what it comes from")


class FeatureTracker:
    """Keeps the features up to date from round to round. Costs no forward pass and no read of the device."""

    def __init__(self, students: Sequence[str]) -> None:
        self.students = tuple(students)
        self.table = feature_table(students)
        # Shares are within their bounds anyway; what is measured or counted need not be.
        self._clipped = [(i, f.low, f.high) for i, f in enumerate(self.table) if f.column is not None or f.unit == "tokens"]
        self.start(0.0, 1.0, 0.0)

    def start(self, entropy_nats: float, top1_probability: float, margin: float) -> None:
        """Begin a text whose first token was chosen from a distribution with these statistics."""
        self._entropy, self._top1, self._margin = entropy_nats, top1_probability, margin
        self._entropy_mean = entropy_nats
        self._accepted_fraction = 0.0
        self._acceptance = dict.fromkeys(self.students, ACCEPTANCE_PRIOR)

    def update(self, record: Round, top1_probability: float, margin: float) -> None:
        """Take in a round; the statistics are those at its last emitted token."""
        for entropy in record.entropies_nats:
            self._entropy_mean = AVERAGE_DECAY * self._entropy_mean + (1 - AVERAGE_DECAY) * entropy
        self._entropy, self._top1, self._margin = record.entropies_nats[-1], top1_probability, margin
        self._accepted_fraction = record.num_accepted / len(record.drafted) if record.drafted else 0.0
        # A token behind the first rejected one was never judged.
        for i, student in enumerate(record.students[: record.num_accepted + 1]):
            if student in self._acceptance:
                kept = ACCEPTANCE_DECAY * self._acceptance[student]
                self._acceptance[student] = kept + (1 - ACCEPTANCE_DECAY) * (i < record.num_accepted)

    def observation(self, lookup_match: int, position: float, lags: Sequence[int]) -> NDArray[np.float32]:
        """Return the observation ``[features]``, finite and within the table's bounds.

        Args:
            lookup_match: Length of the prompt-lookup match (tokens).
            position: Share of the longest possible text that is written.
            lags: How many tokens each student is behind.
        """
        # One call of numpy: between two forward passes nothing is in the processor's cache, and every further call costs microseconds.
        values = [self._entropy, self._entropy_mean, self._top1, self._margin, self._accepted_fraction]
        values += [lookup_match, position, *self._acceptance.values(), *lags]
        for i, low, high in self._clipped:
            if not low <= values[i] <= high:
                values[i] = min(max(values[i], low), high)
        return np.array(values, dtype=np.float32)
