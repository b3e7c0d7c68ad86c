"""What is told of a draft: between a student, the policy that watches it, and the target."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from dispatch_rl.decoding.draft_features import Clarity


@dataclass(frozen=True)
class DraftToken:
    """One drafted token, as a policy may see it before the next."""

    student: str
    token: Tensor
    """Token id ``[1]``, on the device."""
    q_draft: Tensor | None
    """Probabilities it was drawn from ``[1, vocab]``; None unless rejection sampling."""
    logits: Tensor | None = None
    """The student's logits ``[1, vocab]``; None for prompt lookup."""
    second: Tensor | None = None
    """The student's second choice ``[1]``, if the target is to judge it too."""
    clarity: Clarity | None = None
    """How sure the student was, if that was asked for."""
    chance: float = 1.0
    """How likely it is to stand, if an arm asks for it (``min_confidence``)."""
    known: int | None = None
    """The token id, if the host knows it already."""
    row: Tensor | None = None
    """What a graph found where it chose the token, as :class:`Verified` of one row packs it, on the device."""

    @property
    def id(self) -> int:
        """The token id; the host may have to wait for it."""
        return int(self.token) if self.known is None else self.known


class Gap(NamedTuple):
    """What a student has not read, and where the token stands that it then chooses."""

    behind: Sequence[int]
    """Tokens of the text."""
    drafted: Sequence[Tensor]
    """Draft tokens behind them ``[1]``."""
    position: int
    """Position of the chosen token in the sequence, prompt included."""
    draw: int
    """Number of the round."""
    slot: int
    """Draft tokens before it."""


class Look(NamedTuple):
    """What a student sees in its own choice."""

    hesitates: bool
    """Whether it is not to be drafted."""
    chance: float
    """How likely it is to stand, as the arm reckons; 1 if the arm does not ask."""
    second: Tensor | None
    """The second choice ``[1]``, if the target is to judge it too."""


class Judgement(NamedTuple):
    """What the target's pass over a draft gave."""

    logits: Tensor
    """The target's ``[tokens, vocab]``, good until its next pass."""
    accepted: int
    """Leading draft tokens that stand."""
    following: int
    """The token that follows them."""
    read: list[int]
    """The tokens that were read: the text's last, the draft, second choices."""
