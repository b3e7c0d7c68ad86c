"""The arms: what a dispatcher can choose. Imports nothing heavy."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from dispatch_rl.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Number = TypeVar("Number", float, NDArray[np.float64])

NONE = "none"
"""The target alone."""
LOOKUP = "lookup"
"""Prompt lookup: a student without weights that copies what followed the same words before."""
RESERVED_NAMES = (NONE, LOOKUP)


@dataclass(frozen=True)
class Arm:
    """A student, how many tokens it drafts, and when it stops before.

    An arm with ``min_margin`` or ``max_entropy`` *hesitates*: the first token that is not within these limits is not drafted, and the
    draft goes to the target as it is. One with ``min_confidence`` drafts a token and then asks itself whether it pays to go on. An arm
    with any limit *watches* its choices, and does not draft behind an end-of-sequence token.
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
    min_confidence: float | None = None
    """Draft on only while the whole draft so far is this likely to stand, between 0 and 1: the product over its tokens of
    ``1 - 2/3 / (1 + (margin / margin_scale)**2)**2``, a curve that measured rates of acceptance follow; null for no limit."""
    margin_scale: float = 2.0
    """How clear a choice is that can be relied on (nats), for min_confidence: small for a student that agrees with the target wherever it
    is not quite sure, large for one that errs in spite of clear choices."""
    hedge_below: float | None = None
    """Where the student's choice is less clear than this (nats, as in min_margin), the target judges its second choice too: if the first is
    wrong and the second right, it stands, and the round emits one token more. null for no second choices. Rejection sampling has none."""

    def __post_init__(self) -> None:
        if self.student == NONE and self.length != 0:
            raise UserError(f"arms: '{NONE}' drafts nothing, so its length is 0, not {self.length}")
        if self.student != NONE and self.length < 1:
            raise UserError(f"arms: the draft length of '{self.student}' is {self.length}; it must be at least 1")
        for key in ("min_margin", "max_entropy", "min_confidence", "hedge_below"):
            limit = getattr(self, key)
            if limit is not None and not (isinstance(limit, int | float) and 0 <= limit < float("inf")):
                raise UserError(f"arms: {key} of '{self.student}' is {limit!r}; it must be a number of at least 0")
            if limit is not None and self.student in RESERVED_NAMES:
                raise UserError(f"arms: '{self.student}' has no scores of its own, so it cannot have {key}")
        if self.min_confidence is not None and not 0 < self.min_confidence < 1:
            raise UserError(f"arms: min_confidence of '{self.student}' is {self.min_confidence}; it must be between 0 and 1")
        if not 0 < self.margin_scale < float("inf"):
            raise UserError(f"arms: margin_scale of '{self.student}' is {self.margin_scale}; it must be a number above 0")
        if self.min_confidence is None and self.margin_scale != Arm.margin_scale:
            raise UserError(f"arms: margin_scale of '{self.student}' is for min_confidence, which the arm does not have")

    @property
    def stops(self) -> bool:
        """Whether the student may stop before ``length``."""
        return any(limit is not None for limit in (self.min_margin, self.max_entropy, self.min_confidence))

    @property
    def watches(self) -> bool:
        """Whether the student looks at how clear its choices are."""
        return self.stops or self.hedge_below is not None

    @property
    def name(self) -> str:
        """Short name for tables.

        ``small-6``, ``small-24-m0.1`` (margin), ``-e1`` (entropy), ``-c0.4x2`` (confidence and the margin's scale), ``-h2`` (hedge),
        ``lookup-6``, ``none``.
        """
        named = (("m", self.min_margin), ("e", self.max_entropy), ("c", self.min_confidence), ("h", self.hedge_below))
        limits = [f"-{letter}{limit:g}{f'x{self.margin_scale:g}' if letter == 'c' else ''}" for letter, limit in named if limit is not None]
        return f"{self.student}-{self.length}{''.join(limits)}" if self.length else self.student

    def chance(self, margin: "Number") -> "Number":
        """Return how likely a token is to stand whose ``margin`` (nats) is this, for ``min_confidence``.

        A few exact operations in float64, so that a float while decoding and an array in replay give the same bits.
        """
        clarity = margin / self.margin_scale
        grown = 1 + clarity * clarity
        return 1 - (2 / 3) / (grown * grown)


class ArmTable(Sequence[Arm]):
    """The action space of one configuration: action ``i`` is ``table[i]``."""

    def __init__(self, arms: Sequence[Arm]) -> None:
        if not arms:
            raise UserError("arms: the list is empty; give at least one arm")
        names = [arm.name for arm in arms]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise UserError(f"arms: listed twice: {', '.join(twice)}")
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
