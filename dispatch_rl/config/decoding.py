"""What is decoded: models, prompts, arms. Imports nothing heavy."""

from collections.abc import Sequence
from dataclasses import dataclass

from dispatch_rl.config.families import FamilyConfig
from dispatch_rl.config.prompts import PromptConfig
from dispatch_rl.decoding.arms import LOOKUP, NONE, Arm
from dispatch_rl.decoding.sampling import Sampling
from dispatch_rl.errors import UserError

DRAFT_LENGTH = 5
"""Draft length of the default arms of a family (tokens)."""


@dataclass(frozen=True)
class DecodingConfig:
    """What is decoded, by which models, with which arms."""

    family: FamilyConfig = FamilyConfig()
    """The models."""
    arms: list[Arm] | None = None
    """What the dispatcher chooses from; null means every student, lookup and none, at draft_length."""
    draft_length: int | None = None
    """Draft length of the default arms (tokens); null means 5, and for a recording from elsewhere several lengths of 1 to 16, as far as its
    counts and latencies go."""
    sampling: Sampling = Sampling(temperature=0.6)
    """How tokens are chosen."""
    prompts: PromptConfig = PromptConfig()
    """What is decoded."""

    @property
    def watches(self) -> bool:
        """Whether students look at how clear their choices are, so that more is recorded of them."""
        return any(arm.watches for arm in self.arms or ())

    def arm_list(self, students: Sequence[str] | None = None, lookup: bool = True) -> list[Arm]:
        """Return the arms; if none are given, every student, lookup and none.

        Args:
            students: Students of a recording, instead of the family's.
            lookup: Whether prompt lookup is to be had.
        """
        if self.arms is not None:
            return self.arms
        length = DRAFT_LENGTH if self.draft_length is None else self.draft_length
        if length < 1:
            raise UserError(f"draft_length: {length} is not at least 1")
        names = [*(self.family.students if students is None else students), *([LOOKUP] if lookup else [])]
        return [*(Arm(name, length) for name in names), Arm(NONE)]
