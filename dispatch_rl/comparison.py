"""What a comparison of policies on held-out texts found, and the rows that people and scripts read."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dispatch_rl.decoding.rounds import RoundTable, metrics
from dispatch_rl.replay.world import ReplayWorld
from dispatch_rl.statistics import Interval, paired_difference, ratios_of_sums

TARGET_ALONE = "target alone"
ORACLE = "oracle"
"""The clairvoyant minimum over all arms."""

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Row = dict[str, Any]


@dataclass(frozen=True)
class Result:
    """What one policy took."""

    rounds: RoundTable
    """All rounds."""
    times_ms: Floats
    """Decoding time of each text ``[texts]``."""
    prefill_ms: Floats | None = None
    """Time to first token, if measured ``[texts]``."""
    decision_ms: float = 0.0
    """The policy's share of the decoding time."""
    predicted_ms: Floats | None = None
    """What replay predicts for the same arms; NaN where the text was not recorded ``[texts]``."""
    device_use: Mapping[str, Any] = field(default_factory=dict)
    """How busy a GPU was meanwhile, and the bandwidth that each model's passes reached; empty elsewhere."""


@dataclass(frozen=True)
class Comparison:
    """What every policy took for every text."""

    mode: Literal["live", "replay"]
    tokens: Ints
    """Tokens that the rounds of each text emitted ``[texts]``."""
    results: Mapping[str, Result]
    seed: int
    device: str
    bounds: Mapping[str, Floats] = field(default_factory=dict)
    """Lower bounds of the decoding time of each text, by name ``[texts]``."""
    best_fixed: str | None = None
    """The policy that always takes the arm that was best on validation."""
    drift: float | None = None
    """How much slower the machine is than when it was profiled; the predictions are corrected for it."""
    remarks: tuple[str, ...] = ()
    """What else there is to say: texts that parted, the use of a GPU."""

    @property
    def num_texts(self) -> int:
        """Number of texts."""
        return len(self.tokens)

    def latency_ms_per_token(self, name: str) -> Interval:
        """Return decoding time / tokens of a policy or bound, with its 95 % interval."""
        return self._intervals[name]

    @cached_property
    def _intervals(self) -> dict[str, Interval]:
        names = [*self.results, *self.bounds]
        times = np.stack([self._times(name) for name in names])
        return dict(zip(names, ratios_of_sums(times, self.tokens.astype(float), self.seed), strict=True))

    def difference_ms_per_token(self, policy: str, other: str) -> Interval:
        """Return how much more ``policy`` took per token than ``other``, paired by text."""
        return paired_difference(self._times(policy), self._times(other), self.tokens.astype(float), self.seed)

    def gap_closed(self, name: str) -> float | None:
        """Return ``(best_fixed - policy) / (best_fixed - oracle)``; None without a bound."""
        if ORACLE not in self.bounds or self.best_fixed is None:
            return None
        fixed, oracle = (self.latency_ms_per_token(n).value for n in (self.best_fixed, ORACLE))
        return (fixed - self.latency_ms_per_token(name).value) / (fixed - oracle) if fixed > oracle else None

    def rows(self) -> list[Row]:
        """Return one row per policy and bound under the names of the design, fastest last."""
        rows = [*(self._policy_row(name) for name in self.results), *(self._row(name) for name in self.bounds)]
        return sorted(rows, key=lambda row: float(row["latency_ms_per_token"]), reverse=True)

    def text_rows(self) -> list[Row]:
        """Return one row per text: its tokens, and what every policy and bound took for it (ms per token)."""
        names = [*self.results, *self.bounds]
        per_token = np.stack([self._times(name) for name in names]) / self.tokens
        return [
            {"text": text, "tokens": int(tokens), **dict(zip(names, column.tolist(), strict=True))}
            for text, (tokens, column) in enumerate(zip(self.tokens, per_token.T, strict=True))
        ]

    def prediction_errors(self) -> dict[str, float]:
        """Return predicted / measured - 1 of every policy whose texts were recorded."""
        errors = {}
        for name, result in self.results.items():
            known = np.zeros(0) if result.predicted_ms is None else np.isfinite(result.predicted_ms)
            if result.predicted_ms is not None and known.any():
                errors[name] = float(result.predicted_ms[known].sum() / result.times_ms[known].sum() - 1)
        return errors

    def _row(self, name: str) -> Row:
        latency = self.latency_ms_per_token(name)
        return {
            "policy": name,
            "mode": self.mode,
            "latency_ms_per_token": latency.value,
            "ci_low": latency.low,
            "ci_high": latency.high,
            "speedup": self.latency_ms_per_token(TARGET_ALONE).value / latency.value,
            "gap_closed": self.gap_closed(name),
            "mean_acceptance_length": None,
            "draft_acceptance_rate": None,
            "arm_shares": {},
            "decision_overhead": None,
            "num_texts": self.num_texts,
            "device": self.device,
            "seed": self.seed,
        }

    def _policy_row(self, name: str) -> Row:
        result = self.results[name]
        row = self._row(name) | metrics(result.rounds) | dict(result.device_use)
        if result.prefill_ms is not None:
            row["time_to_first_token_ms"] = float(np.median(result.prefill_ms))
            row["decision_overhead"] = result.decision_ms / float(result.times_ms.sum())
        if (error := self.prediction_errors().get(name)) is not None:
            row["predicted_latency_ms_per_token"] = row["latency_ms_per_token"] * (1 + error)
            row["prediction_error"] = error
        return row

    def _times(self, name: str) -> Floats:
        return self.bounds[name] if name in self.bounds else self.results[name].times_ms


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found; either comparison may be missing, not both."""

    replayed: Comparison | None
    live: Comparison | None
    world: ReplayWorld | None
    """The held-out texts, if they were replayed."""

    def rows(self) -> list[Row]:
        """Return the rows of both comparisons."""
        return [row for comparison in (self.replayed, self.live) if comparison is not None for row in comparison.rows()]
