"""Ratios of sums and their bootstrap intervals."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_RESAMPLES = 10_000
_BLOCK = 1 << 21
"""Items drawn at a time, over all resamples."""


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval, which holds it."""

    value: float
    low: float
    high: float


def ratio_of_sums(numerators: Floats, denominators: Floats, seed: int) -> Interval:
    """Return ``sum(numerators) / sum(denominators)`` with a percentile bootstrap over the items (prompts)."""
    return ratios_of_sums(numerators[None], denominators, seed)[0]


def ratios_of_sums(numerators: Floats, denominators: Floats, seed: int) -> list[Interval]:
    """Return the ratio of sums of every row of ``numerators [rows, items]``; all rows are resampled alike."""
    values = np.concatenate([numerators, denominators[None]]).T
    sums = np.concatenate([counts @ values for counts in _resampled_counts(len(denominators), seed)])
    low, high = np.quantile(sums[:, :-1] / sums[:, -1:], [0.025, 0.975], axis=0)
    exact = numerators.sum(axis=1) / denominators.sum()
    # Where all items are alike, rounding puts the quantiles a bit beside what they are quantiles around.
    low, high = np.minimum(low, exact), np.maximum(high, exact)
    return [Interval(*map(float, bounds)) for bounds in zip(exact, low, high, strict=True)]


def paired_difference(a: Floats, b: Floats, denominators: Floats, seed: int) -> Interval:
    """Return ``(sum(a) - sum(b)) / sum(denominators)``: both measured on the same items, resampled together."""
    return ratio_of_sums(a - b, denominators, seed)


def _resampled_counts(items: int, seed: int) -> Iterator[Floats]:
    """Yield how often each item is drawn in each resample ``[resamples, items]``, a block at a time."""
    rng = np.random.default_rng(seed)
    block = max(1, min(_RESAMPLES, _BLOCK // items))
    for begin in range(0, _RESAMPLES, block):
        rows = min(block, _RESAMPLES - begin)
        picks = rng.integers(items, size=(rows, items)) + items * np.arange(rows)[:, None]
        yield np.bincount(picks.ravel(), minlength=rows * items).reshape(rows, items).astype(np.float64)
