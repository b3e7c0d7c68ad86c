"""Latency profiles: how long every forward pass of a family takes on one device, and what a round costs besides.

A profile is a JSON file, so that a table of costs from elsewhere can be written by hand::

    {"schema": 1, "device": "A100", "dtype": "bfloat16", "overhead_ms": 0.2,
     "models": {"target": {"queries": [1, 9], "contexts": [1], "median_ms": [[20.0], [22.0]]},
                "small":  {"queries": [1],    "contexts": [1], "median_ms": [[2.0]]}}}

``median_ms[i][j]`` is the latency of reading ``queries[i]`` tokens at once up to a text of ``contexts[j]`` tokens, those included. Between
the grid's points it is linear. Beyond its last query length the last slope goes on; elsewhere beyond it the last value holds. A student's
drafts of more than one token cost ``next_ms[j]`` for each token after the first, if it is given, else as a query of one. ``lookup`` may be
given like a student; ``after`` may give the target's latencies behind the drafts of single students.
"""

import difflib
import json
from dataclasses import KW_ONLY, MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dispatch_rl.decoding.arms import LOOKUP
from dispatch_rl.errors import UserError, first_line

VERSION = 1
TARGET = "target"
_LONGEST_MS = 1e9
"""No forward pass takes longer; sums of more would lose digits."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ForwardLatency:
    """Latency of one model's forward pass on a grid."""

    queries: tuple[int, ...]
    """Tokens read at once, rising."""
    contexts: tuple[int, ...]
    """Length of the text after reading them (tokens), rising."""
    median_ms: tuple[tuple[float, ...], ...]
    """``[queries][contexts]``."""
    next_ms: tuple[float, ...] | None = None
    """Of a draft token after the first ``[contexts]``; None means as a query of one."""
    quartile_low_ms: tuple[tuple[float, ...], ...] | None = None
    """A quarter of the measurements were faster ``[queries][contexts]``."""
    quartile_high_ms: tuple[tuple[float, ...], ...] | None = None
    """A quarter were slower ``[queries][contexts]``."""

    def __post_init__(self) -> None:
        if len(self.median_ms) != len(self.queries) or any(len(row) != len(self.contexts) for row in self.median_ms):
            raise UserError("median_ms has not one row per query length and one column per context")
        if self.next_ms is not None and len(self.next_ms) != len(self.contexts):
            raise UserError("next_ms has not one entry per context")
        for name, grid in (("queries", self.queries), ("contexts", self.contexts)):
            if not grid or list(grid) != sorted(set(grid)) or grid[0] < 1 or not all(isinstance(point, int) for point in grid):
                raise UserError(f"{name} must be whole numbers of at least 1 that rise")
        for name, values in (("median_ms", self.median_ms), ("next_ms", self.next_ms or ())):
            if not all(_is_time(value) for value in np.ravel(np.array(values, dtype=object))):
                raise UserError(f"{name} must hold times of 0 to {_LONGEST_MS:g} ms")

    def at_contexts(self, longest: int) -> Floats:
        """Return the latencies of the grid's query lengths at every length of the text ``[queries, longest + 1]``."""
        lengths = np.arange(longest + 1)
        return np.array([np.interp(lengths, self.contexts, row) for row in self.median_ms])

    def next_at_contexts(self, longest: int) -> Floats:
        """Return the latency of a further draft token at every length of the text ``[longest + 1]``."""
        if self.next_ms is not None:
            return np.interp(np.arange(longest + 1), self.contexts, self.next_ms)
        below, weight = self.between(np.array([1]))
        return interpolated(self.at_contexts(longest), below[0], weight[0])

    def between(self, queries: NDArray[np.int64]) -> tuple[NDArray[np.int64], Floats]:
        """Return for each query length the grid point below it and how far it is on the way to the next, beyond the last more than 1."""
        if len(self.queries) == 1:
            return np.zeros(len(queries), dtype=np.int64), np.zeros(len(queries))
        grid = np.array(self.queries)
        below = np.clip(np.searchsorted(grid, queries, side="right") - 1, 0, len(grid) - 2)
        return below, np.maximum((queries - grid[below]) / (grid[below + 1] - grid[below]), 0.0)


def interpolated(grid: Floats, below: int, weight: float) -> Floats:
    """Return the row of ``grid [queries, ...]`` that lies ``weight`` of the way from row ``below`` to the next."""
    above = min(below + 1, len(grid) - 1)
    row: Floats = np.maximum(grid[below] + weight * (grid[above] - grid[below]), 0)
    return row


@dataclass(frozen=True)
class Profile:
    """Latencies of a family on one device."""

    device: str
    """What the models ran on."""
    dtype: str
    """Type of the weights."""
    models: dict[str, ForwardLatency]
    """``target``, the students, and perhaps ``lookup``."""
    _: KW_ONLY
    after: dict[str, ForwardLatency] = field(default_factory=dict)
    """The target's, by the student whose draft it verifies, where that is known to differ."""
    overhead_ms: float = 0.0
    """What a round costs besides forward passes: features, bookkeeping."""
    token_ms: float = 0.0
    """What an emitted token costs besides: its share of the noise that is made for many tokens at once."""
    watch_ms: float = 0.0
    """What a forward pass of a student costs besides if it watches how clear its choice is."""
    family: str | None = None
    """Fingerprint of the family; None for a table from elsewhere."""
    versions: dict[str, str] = field(default_factory=dict)
    """Versions of what was measured."""

    def __post_init__(self) -> None:
        for name, value in (("overhead_ms", self.overhead_ms), ("token_ms", self.token_ms), ("watch_ms", self.watch_ms)):
            if not _is_time(value):
                raise UserError(f"{name} is {value!r}; it must be a time of 0 to {_LONGEST_MS:g} ms")
        for name, text in (("device", self.device), ("dtype", self.dtype)):
            if not isinstance(text, str):
                raise UserError(f"{name} is {text!r}; it must be a text")
        if TARGET not in self.models:
            raise UserError(f"models has no '{TARGET}'")
        if not np.max(self.models[TARGET].median_ms) > 0:
            raise UserError(f"models.{TARGET}: median_ms is 0 everywhere")
        if strange := [name for name in self.after if name not in self.models]:
            raise UserError(f"after.{strange[0]}: models has no '{strange[0]}'")

    def write(self, path: Path) -> None:
        """Write the profile as JSON."""
        from dispatch_rl.runs import write_json

        write_json(path, {"schema": VERSION, **asdict(self)})

    @classmethod
    def read(cls, path: Path) -> "Profile":
        """Read a profile.

        Raises:
            UserError: It is missing, broken, of another version, or without a target.
        """
        if not path.is_file():
            raise UserError(f"profile: there is no file {path}")
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(values, dict) or values.get("schema") != VERSION:
                raise UserError(f"it has no 'schema': {VERSION}")
            sections = {name: _forward_latencies(name, values.get(name, {})) for name in ("models", "after")}
            given: dict[str, Any] = {key: value for key, value in values.items() if key != "schema"} | sections
            _check_keys(cls, given)
            return cls(**given)
        except UserError as error:
            raise UserError(f"{path}: not a profile: {error}") from error
        except ValueError as error:
            raise UserError(f"{path}: not a profile: it is no JSON: {first_line(error)}") from error

    def check_fits(self, path: Path, family: str | None, device: str | None, dtype: str | None) -> None:
        """Refuse a profile of another family or device; None is not compared.

        Raises:
            UserError: Naming ``path``.
        """
        for what, mine, wanted in (("family", self.family, family), ("device", self.device, device), ("type", self.dtype, dtype)):
            if None not in (mine, wanted) and mine != wanted:
                raise UserError(f"{path}: the profile is of another {what}, '{mine}' instead of '{wanted}'; run dispatch_rl.profile here")

    def verification(self, student: str) -> ForwardLatency:
        """Return the target's latencies behind a draft of ``student``."""
        return self.after.get(student, self.models[TARGET])

    def model(self, name: str) -> ForwardLatency:
        """Return the latencies of a model; prompt lookup costs nothing unless it is given.

        Raises:
            UserError: There are none.
        """
        if name == LOOKUP and name not in self.models:
            return ForwardLatency((1,), (1,), ((0.0,),))
        if name not in self.models:
            raise UserError(f"replay.profile: it has no model '{name}'; there are {', '.join(self.models)}")
        return self.models[name]


def _is_time(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= _LONGEST_MS


def _check_keys(kind: type, values: dict[str, Any]) -> None:
    """Refuse unknown and missing keys of a dataclass."""
    known = {field.name: field.default is MISSING and field.default_factory is MISSING for field in fields(kind)}
    if unknown := [key for key in values if key not in known]:
        near = difflib.get_close_matches(unknown[0], known, n=1)
        raise UserError(f"unknown key '{unknown[0]}'" + (f"; did you mean {near[0]}?" if near else ""))
    if missing := [key for key, needed in known.items() if needed and key not in values]:
        raise UserError(f"'{missing[0]}' is missing")


def _forward_latencies(section: str, entries: Any) -> dict[str, ForwardLatency]:
    if not isinstance(entries, dict):
        raise UserError(f"{section} must hold latencies by model")
    found = {}
    for name, entry in entries.items():
        try:
            if not isinstance(entry, dict):
                raise UserError(f"it is {entry!r}, not queries, contexts and median_ms")
            _check_keys(ForwardLatency, entry)
            found[name] = ForwardLatency(**{key: _tuples(value) for key, value in entry.items()})
        except UserError as error:
            raise UserError(f"{section}.{name}: {error}") from error
        except (TypeError, ValueError) as error:
            raise UserError(f"{section}.{name}: its values are not the lists of numbers that they should be") from error
    return found


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
