"""The parameters of a sweep: what W&B's file may say of one, and how a value comes out of it."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

_RANGE, _STEPS, _BELL = {"min", "max"}, {"min", "max", "q"}, {"mu", "sigma"}
KINDS: dict[str, set[str]] = {
    "constant": {"value"},
    "categorical": {"values", "probabilities"},
    "int_uniform": _RANGE,
    "uniform": _RANGE,
    "q_uniform": _STEPS,
    "log_uniform": _RANGE,
    "log_uniform_values": _RANGE,
    "q_log_uniform": _STEPS,
    "q_log_uniform_values": _STEPS,
    "inv_log_uniform": _RANGE,
    "inv_log_uniform_values": _RANGE,
    "normal": _BELL,
    "q_normal": {*_BELL, "q"},
    "log_normal": _BELL,
    "q_log_normal": {*_BELL, "q"},
}
"""W&B's distributions and the keys that each may have. Its ``beta`` and ``q_beta`` are left out."""

DEFAULTS: dict[str, Any] = {"mu": 0.0, "sigma": 1.0, "q": 1}
_EDGE = 1e-9
"""Percentiles keep this far from 0 and 1, where a bell curve is infinite."""


@dataclass(frozen=True, eq=False)
class Parameter:
    """One parameter of a sweep.

    Args:
        path: Its key, and the keys within it where the file nests ``parameters``.
        kind: One of :data:`KINDS`.
        settings: ``min``, ``max`` and so on, complete and checked.
    """

    path: tuple[str, ...]
    kind: str
    settings: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The option of ``train`` that it sets."""
        return ".".join(self.path)

    @property
    def is_constant(self) -> bool:
        """Whether there is nothing to choose."""
        return self.kind == "constant"

    @property
    def is_logarithmic(self) -> bool:
        """Whether factors matter, not differences."""
        return "log" in self.kind

    def distribution(self) -> "BaseDistribution":
        """Return what Optuna draws from; :meth:`value` makes a value of what it draws."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        set_ = self.settings
        if self.kind == "categorical" and "probabilities" not in set_:
            return CategoricalDistribution([json.dumps(value) for value in set_["values"]])
        if self.kind == "int_uniform":
            return IntDistribution(set_["min"], set_["max"])
        if "uniform" in self.kind:
            return FloatDistribution(*self._bounds(), log=self.is_logarithmic)
        return FloatDistribution(_EDGE, 1 - _EDGE)

    def _bounds(self) -> tuple[float, float]:
        """Return the least and the largest value; W&B's names without ``_values`` give logarithms."""
        low, high = self.settings["min"], self.settings["max"]
        if self.is_logarithmic and not self.kind.endswith("_values"):
            low, high = (-high, -low) if self.kind.startswith("inv_") else (low, high)
            return math.exp(low), math.exp(high)
        return float(low), float(high)

    def value(self, drawn: Any) -> Any:
        """Return the value for what was drawn from :meth:`distribution`."""
        set_ = self.settings
        if self.is_constant:
            return set_["value"]
        if self.kind == "categorical":
            return _at(set_["values"], set_["probabilities"], drawn) if "probabilities" in set_ else json.loads(drawn)
        if "normal" in self.kind:
            drawn = set_["mu"] + set_["sigma"] * NormalDist().inv_cdf(drawn)
            drawn = math.exp(drawn) if self.is_logarithmic else drawn
        if "q" in set_:
            drawn = round(drawn / set_["q"]) * set_["q"]
        return _plain(drawn)

    def grid(self) -> list[Any] | None:
        """Return all values, or None where there is no end of them; like W&B, a grid of ``q_uniform`` leaves ``max`` out."""
        set_ = self.settings
        if self.is_constant:
            return [set_["value"]]
        if self.kind == "categorical" and "probabilities" not in set_:
            return list(set_["values"])
        if self.kind == "int_uniform":
            return list(range(set_["min"], set_["max"] + 1))
        if self.kind == "q_uniform":
            steps = math.ceil((set_["max"] - set_["min"]) / set_["q"] - 1e-9)
            return [_plain(set_["min"] + i * set_["q"]) for i in range(steps)]
        return None

    def samples(self) -> list[Any]:
        """Return values that show whether the option takes what the file would give it."""
        if (values := self.settings.get("values")) is not None:
            return list(values)
        drawn = [0.5] if "normal" in self.kind else list(self._bounds()) if "uniform" in self.kind else [None]
        return [self.value(each) for each in drawn]


def _plain(number: float) -> float:
    """Return 3 * 0.1 as 0.3, and an integral float as an integer, which is what W&B's server makes of it."""
    number = float(f"{number:.12g}")
    return int(number) if number.is_integer() and abs(number) < 2**53 else number


def _at(values: list[Any], probabilities: list[float], percentile: float) -> Any:
    total = 0.0
    for value, probability in zip(values, probabilities, strict=True):
        total += probability
        if percentile < total:
            return value
    return values[-1]
