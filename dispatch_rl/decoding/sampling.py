"""How the next token is chosen from the target's distribution. Imports nothing heavy."""

from dataclasses import dataclass
from typing import Literal

from dispatch_rl.errors import UserError


@dataclass(frozen=True)
class Sampling:
    """Greedy at temperature zero; otherwise Gumbel-coupled or rejection sampling."""

    temperature: float = 0.0
    """Divides the logits; 0 means greedy."""
    top_k: int | None = None
    """Keep the k likeliest tokens; null keeps all."""
    top_p: float | None = None
    """Keep the likeliest tokens up to this probability, in (0, 1]; null keeps all."""
    seed: int = 0
    """Seed of the noise, from 0 to 2**64 - 1."""
    method: Literal["coupled", "rejection"] = "coupled"
    """coupled: the text depends on the target and the seed alone. rejection: it also depends on the drafts."""

    def __post_init__(self) -> None:
        if not self.temperature >= 0 or self.temperature == float("inf"):
            raise UserError(f"sampling.temperature: {self.temperature} is not a finite number of at least 0")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"sampling.top_k: {self.top_k} is not at least 1; leave it out to keep all tokens")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError(f"sampling.top_p: {self.top_p} is not in (0, 1]")
        if not 0 <= self.seed < 2**64:
            raise UserError(f"sampling.seed: {self.seed} is not in 0 ... 2**64 - 1")

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature == 0
