"""The arms: what a dispatcher can choose. Imports nothing heavy."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dispatch_rl.errors import UserError

NONE = "none"
"""The target alone."""
LOOKUP = "lookup"
"""Prompt lookup: a student without weights that copies what followed the same words before."""
RESERVED_NAMES = (NONE, LOOKUP)


@dataclass(frozen=True)
class Arm:
    """A student, how many tokens it drafts, and when it stops before.

    An arm with ``min_margin`` or ``max_entropy`` *hesitates*: the first token that is not within these limits is not drafted, and the
    draft goes to the target as it is. An arm with any limit *watches* its choices, and does not draft behind an end-of-sequence token.
    """

    student: str
    """Name of a student of the family, ``lookup`` or ``none``."""
    length: int = 0
    """Draft length (tokens), or the most of it; 0 for ``none`` only."""
    min_margin: float | None = None
    """Draft on only while the student's choice is this clear: the difference of its two best scores (nats), which are logits divided by
    the temperature plus the noise that it shares with the target, or plain logits if decoding is greedy; null for no limit."""
    max_entropy: float | None = None
    """Draft on only while the student's own entropy (nats, before temperature) is at most this; null for no limit."""
    hedge_below: float | None = None
    """Where the student's choice is less clear than this (nats, as in min_margin), the target judges its second choice too: if the first is
    wrong and the second right, it stands, and the round emits one token more. null for no second choices. Rejection sampling has none."""

    def __post_init__(self) -> None:
        if self.student == NONE and self.length != 0:
            raise UserError(f"arms: '{NONE}' drafts nothing, so its length is 0, not {self.length}")
        if self.student != NONE and self.length < 1:
            raise UserError(f"arms: the draft length of '{self.student}' is {self.length}; it must be at least 1")
        for key in ("min_margin", "max_entropy", "hedge_below"):
            limit = getattr(self, key)
            if limit is not None and not 0 <= limit < float("inf"):
                raise UserError(f"arms: {key} of '{self.student}' is {limit}; it must be a number of at least 0")
            if limit is not None and self.student in RESERVED_NAMES:
                raise UserError(f"arms: '{self.student}' has no scores of its own, so it cannot have {key}")

    @property
    def hesitates(self) -> bool:
        """Whether the student may stop before ``length``."""
        return self.min_margin is not None or self.max_entropy is not None

    @property
    def watches(self) -> bool:
        """Whether the student looks at how clear its choices are."""
        return self.hesitates or self.hedge_below is not None

    @property
    def name(self) -> str:
        """Short name for tables: ``small-6``, ``small-24-m0.1`` (margin), ``-e1`` (entropy), ``-h2`` (hedge), ``lookup-6``, ``none``."""
        named = (("m", self.min_margin), ("e", self.max_entropy), ("h", self.hedge_below))
        limits = (f"-{letter}{limit:g}" for letter, limit in named if limit is not None)
        return f"{self.student}-{self.length}{''.join(limits)}" if self.length else self.student


class ArmTable(Sequence[Arm]):
    """The action space of one configuration: action ``i`` is ``table[i]``."""

    def __init__(self, arms: Sequence[Arm]) -> None:
        if not arms:
            raise UserError("arms: the list is empty; give at least one arm")
        if len(set(arms)) < len(arms):
            raise UserError(f"arms: listed twice: {', '.join(sorted({a.name for a in arms if list(arms).count(a) > 1}))}")
        self._arms = tuple(arms)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        return self._arms[index]

    def __len__(self) -> int:
        return len(self._arms)

    def __iter__(self) -> Iterator[Arm]:
        return iter(self._arms)

    def first_of(self, student: str) -> int:
        """Return the action of the first arm of ``student``.

        Raises:
            UserError: ``student`` has no arm.
        """
        for action, arm in enumerate(self._arms):
            if arm.student == student:
                return action
        raise UserError(f"arms: none drafts with '{student}'; there are {', '.join(arm.name for arm in self._arms)}")

    def check_students(self, students: Sequence[str]) -> None:
        """Refuse an arm whose student the family lacks."""
        for arm in self._arms:
            if arm.student not in (*students, *RESERVED_NAMES):
                raise UserError(f"arms: unknown student '{arm.student}'; the family has {', '.join(students)}")
