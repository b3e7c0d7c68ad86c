"""Ratios of sums, their intervals, and that the intervals mean what they say."""

import numpy as np
import pytest

from dispatch_rl import statistics
from dispatch_rl.statistics import Floats, Interval, paired_difference, ratio_of_sums


def floats(*values: float) -> Floats:
    """Return ``values`` as an array."""
    return np.array(values, dtype=np.float64)


def latencies(rng: np.random.Generator, items: int) -> tuple[Floats, Floats]:
    """Return tokens of some texts, from 20 to 200, and the milliseconds they took at 4 ms per token and any hardness."""
    tokens = rng.integers(20, 201, items).astype(np.float64)
    return 4 * tokens * rng.uniform(0.5, 1.5, items), tokens


def test_ratio_of_sums_by_hand() -> None:
    """(10 + 30) / (5 + 5) = 4; and with unequal texts (10 + 30) / (1 + 9) = 4, where the mean of ratios is 6.67."""
    assert ratio_of_sums(floats(10, 30), floats(5, 5), seed=0).value == 4
    assert ratio_of_sums(floats(10, 30), floats(1, 9), seed=0).value == 4


def test_interval_of_two_items_by_hand() -> None:
    """Two items resample to themselves, or to either alone a quarter of the time each: the ends are 10 / 5 and 30 / 5."""
    assert ratio_of_sums(floats(10, 30), floats(5, 5), seed=0) == Interval(4, 2, 6)


def test_equal_items_leave_no_doubt() -> None:
    """If every text took as long per token as any other, the interval is a point."""
    tokens = floats(2, 8, 16, 4)
    assert ratio_of_sums(4 * tokens, tokens, seed=3) == Interval(4, 4, 4)
    assert paired_difference(5 * tokens, 4 * tokens, tokens, seed=3) == Interval(1, 1, 1)


def test_an_interval_holds_its_value() -> None:
    """Equal items leave quantiles that rounding puts a bit beside it, where no figure can be drawn."""
    rng = np.random.default_rng(0)
    for _ in range(40):
        tokens = np.full(rng.integers(2, 40), rng.integers(20, 200), dtype=np.float64)
        found = ratio_of_sums(rng.uniform(1, 50) * tokens, tokens, seed=0)
        assert found.low <= found.value <= found.high


def test_difference_by_hand() -> None:
    """(10 + 30) / 10 - (5 + 15) / 10 = 2, and the other way round -2."""
    a, b, tokens = floats(10, 30), floats(5, 15), floats(4, 6)
    assert paired_difference(a, b, tokens, seed=0).value == 2
    assert paired_difference(b, a, tokens, seed=0).value == -2


def test_pairing_narrows_the_interval() -> None:
    """Two policies on the same texts share what makes a text slow; their difference is known better than either."""
    a, tokens = latencies(np.random.default_rng(0), 40)
    b = 0.97 * a
    paired = paired_difference(a, b, tokens, seed=0)
    first, second = ratio_of_sums(a, tokens, seed=0), ratio_of_sums(b, tokens, seed=1)
    unpaired_width = float(np.hypot(first.high - first.low, second.high - second.low))
    assert paired.value == pytest.approx(first.value - second.value)
    assert paired.high - paired.low < unpaired_width / 10
    assert paired.low > 0


def test_same_seed_same_interval() -> None:
    """The interval depends on the data and the seed alone; the value on the data alone."""
    numerators, denominators = latencies(np.random.default_rng(1), 30)
    first = ratio_of_sums(numerators, denominators, seed=7)
    other = ratio_of_sums(numerators, denominators, seed=8)
    assert ratio_of_sums(numerators, denominators, seed=7) == first
    assert other.value == first.value
    assert (other.low, other.high) != (first.low, first.high)
    assert (other.low, other.high) == pytest.approx((first.low, first.high), rel=0.02)


def test_interval_holds_the_value() -> None:
    """The estimate lies within its interval."""
    interval = ratio_of_sums(*latencies(np.random.default_rng(2), 25), seed=0)
    assert interval.low < interval.value < interval.high


def test_intervals_weigh_texts_by_their_length() -> None:
    """Twenty texts of 1 token at 10 ms and twenty of 99 at 2 ms: (200 + 3960) / 2000 = 2.08, and no resample is near their mean of 6."""
    tokens = np.repeat(floats(1, 99), 20)
    interval = ratio_of_sums(tokens * np.repeat(floats(10, 2), 20), tokens, seed=0)
    assert interval.value == 4160 / 2000
    assert 2 < interval.low < interval.value < interval.high < 3


def test_interval_covers_the_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 95 % intervals, between 90 and 99 % hold the true latency of 4 ms per token (1,000 experiments of 40 texts)."""
    monkeypatch.setattr(statistics, "_RESAMPLES", 1_000)
    rng = np.random.default_rng(3)
    intervals = [ratio_of_sums(*latencies(rng, 40), seed=number) for number in range(1_000)]
    covered = np.mean([interval.low <= 4 <= interval.high for interval in intervals])
    assert 0.90 <= covered <= 0.99
    missed_low = np.mean([interval.high < 4 for interval in intervals])
    missed_high = np.mean([interval.low > 4 for interval in intervals])
    assert max(missed_low, missed_high) < 0.07
