"""Ratios of sums and their bootstrap intervals."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_RESAMPLES = 10_000


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval."""

    value: float
    low: float
    high: float


def ratio_of_sums(numerators: Floats, denominators: Floats, seed: int) -> Interval:
    """Return ``sum(numerators) / sum(denominators)`` with a percentile bootstrap over the items (prompts)."""
    picks = _picks(len(numerators), seed)
    ratios = numerators[picks].sum(1) / denominators[picks].sum(1)
    return _interval(float(numerators.sum() / denominators.sum()), ratios)


def paired_difference(a: Floats, b: Floats, denominators: Floats, seed: int) -> Interval:
    """Return ``(sum(a) - sum(b)) / sum(denominators)``: both measured on the same items, resampled together."""
    return ratio_of_sums(a - b, denominators, seed)


def _picks(items: int, seed: int) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(items, size=(_RESAMPLES, items))


def _interval(value: float, resampled: Floats) -> Interval:
    low, high = np.quantile(resampled, [0.025, 0.975])
    return Interval(value, float(low), float(high))
