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
    """A student and how many tokens it drafts."""

    student: str
    """Name of a student of the family, ``lookup`` or ``none``."""
    length: int = 0
    """Draft length (tokens); 0 for ``none`` only."""

    def __post_init__(self) -> None:
        if self.student == NONE and self.length != 0:
            raise UserError(f"arms: '{NONE}' drafts nothing, so its length is 0, not {self.length}")
        if self.student != NONE and self.length < 1:
            raise UserError(f"arms: the draft length of '{self.student}' is {self.length}; it must be at least 1")

    @property
    def name(self) -> str:
        """Short name for tables: ``small-6``, ``lookup-6``, ``none``."""
        return f"{self.student}-{self.length}" if self.length else self.student


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
