"""W&B's early termination: which runs are stopped because others did better at the same point.

Hyperband (Li et al., https://arxiv.org/abs/1603.06560) as W&B applies it. Iterations are counted in logged values of the metric, which
here are validations: not in rounds.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dispatch_rl.errors import UserError
from dispatch_rl.sweeping.suggestions import among

_KEYS = {"type", "min_iter", "max_iter", "s", "eta", "strict"}
_MOST_BANDS = 100


@dataclass(frozen=True)
class Hyperband:
    """``early_terminate: {type: hyperband}``.

    Args:
        bands: Iterations, rising, at which runs are compared.
        eta: One run in ``eta`` goes on.
        strict: Compare what a run had at its last band; else the best that it ever had.
    """

    bands: tuple[int, ...]
    eta: float
    strict: bool

    def stops(self, values: Sequence[float], others: Sequence[Sequence[float]], seen: int = 0) -> bool:
        """Return whether a run is to be stopped: at its last band, or at one that it has passed since it was last looked at.

        Args:
            values: The run's metric, iteration by iteration; less is better.
            others: The same of all other runs, ended or not.
            seen: How many of ``values`` there were then; a fast run passes several bands between two looks.
        """
        passed = [band for band in self.bands if band <= len(values)]
        return any(self._stops_at(band, values, others) for band in passed if band > seen or band == passed[-1])

    def _stops_at(self, band: int, values: Sequence[float], others: Sequence[Sequence[float]]) -> bool:
        at_band = sorted(run[band - 1] for run in (values, *others) if len(run) >= band)
        threshold = at_band[min(int(len(at_band) / self.eta), len(at_band) - 1)]
        return (values[band - 1] if self.strict else min(values)) > threshold


def read_stopping(given: Any, where: str) -> Hyperband:
    """Return the rule that an ``early_terminate`` section describes.

    Raises:
        UserError: Naming file and key.
    """
    if not isinstance(given, dict):
        raise UserError(f"{where}: {given!r} is not a mapping with type and min_iter, or type, max_iter and s")
    for key in given:
        if key not in _KEYS:
            raise UserError(f"{where}.{key}: there is no such key here{among(key, _KEYS)}")
    if given.get("type") != "hyperband":
        raise UserError(f"{where}.type: {given.get('type')!r} is not hyperband, the only one that there is")
    for key in ("min_iter", "max_iter", "s"):
        if key in given and (not isinstance(given[key], int) or isinstance(given[key], bool) or given[key] < 1):
            raise UserError(f"{where}.{key}: {given[key]!r} is not an integer of at least 1")
    eta, strict = given.get("eta", 3), given.get("strict", False)
    if isinstance(eta, bool) or not isinstance(eta, int | float) or not 1 < eta < math.inf:
        raise UserError(f"{where}.eta: {eta!r} is not above 1")
    if not isinstance(strict, bool):
        raise UserError(f"{where}.strict: {strict!r} is neither true nor false")
    return Hyperband(_bands(given, eta, where), eta, strict)


def _bands(given: dict[str, Any], eta: float, where: str) -> tuple[int, ...]:
    if "max_iter" in given:
        if "s" not in given:
            raise UserError(f"{where}.s: max_iter needs it, the number of bands")
        bands = {int(given["max_iter"] / eta**i) for i in range(1, min(given["s"], _MOST_BANDS) + 1)} - {0}
        if not bands:
            raise UserError(f"{where}.max_iter: {given['max_iter']} leaves no iteration to compare at with eta {eta:g}")
        return tuple(sorted(bands))
    if "min_iter" not in given:
        raise UserError(f"{where}: it needs min_iter, or max_iter and s")
    return tuple(sorted({int(min(given["min_iter"] * eta**i, 2.0**62)) for i in range(_MOST_BANDS)}))
