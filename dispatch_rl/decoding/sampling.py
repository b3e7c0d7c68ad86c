"""How the next token is chosen from the target's distribution. Imports nothing heavy."""

from dataclasses import dataclass
from numbers import Integral, Real
from typing import Literal

from dispatch_rl.errors import UserError

LEAST_TEMPERATURE = 1e-30
"""Below it float32 would not hold logits that are divided by it."""


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
        self._take_numbers()
        if self.method not in ("coupled", "rejection"):
            raise UserError(f"sampling.method: {self.method!r} is neither coupled nor rejection")
        if not self.temperature >= 0 or self.temperature == float("inf"):
            raise UserError(f"sampling.temperature: {self.temperature} is not a finite number of at least 0")
        if 0 < self.temperature < LEAST_TEMPERATURE:
            raise UserError(
                f"sampling.temperature: {self.temperature} would make logits infinite; 0 is greedy, else take {LEAST_TEMPERATURE} or more"
            )
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

    def _take_numbers(self) -> None:
        """Refuse what is no number, as Python's callers and bundles come without the command line's checks; numpy's become Python's."""
        wanted: tuple[tuple[str, type, type], ...] = (
            ("temperature", Real, float),
            ("top_k", Integral, int),
            ("top_p", Real, float),
            ("seed", Integral, int),
        )
        for key, kind, plain in wanted:
            value = getattr(self, key)
            if value is None and key in ("top_k", "top_p"):
                continue
            if isinstance(value, bool) or not isinstance(value, kind):
                raise UserError(f"sampling.{key}: {value!r} is not {'a number' if kind is Real else 'an integer'}")
            object.__setattr__(self, key, plain(value))
