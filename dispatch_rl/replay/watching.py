"""What students do that watch how clear their choices are, from everywhere on a path: where they stop, and where they hedge."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dispatch_rl.decoding.arms import Arm
from dispatch_rl.errors import UserError
from dispatch_rl.replay.columns import Bytes, Ints, Nested, runs
from dispatch_rl.replay.schema import BEYOND, LONGEST_DRAFT, SECOND
from dispatch_rl.replay.traces import Traces


class Drafts(NamedTuple):
    """What a student drafts from every position if nothing but its limits stops it."""

    drafted: Bytes
    """Draft tokens ``[positions]``."""
    hesitates: NDArray[np.bool_]
    """Whether it stops before a token that it is not sure of, which costs a forward pass; else it has ended the text ``[positions]``."""


def drafts(traces: Traces, arm: Arm) -> Drafts:
    """Return how far the student of ``arm`` drafts within its limits.

    From a position, the student first drafts what is on the path, as far as it matches. Then it drafts its first wrong token, unless it
    hesitates there, and goes on beyond the path.

    Raises:
        UserError: What has to be known was not recorded.
    """
    positions = np.arange(traces.num_positions)
    matching = np.minimum(traces.accepted[arm.student], LONGEST_DRAFT - 1).astype(np.int64)
    clear = _within(arm, len(positions), _floats(traces, arm, "margin"), _floats(traces, arm, "entropy"))
    sure = runs(clear, traces.offsets).astype(np.int64)
    to_end = np.repeat(traces.offsets[1:], traces.lengths) - positions
    wrong = np.minimum(positions + matching, traces.num_positions - 1)
    on, ends = _beyond(traces, arm)
    # Behind the wrong token: one more, and as many as are clear there.
    leaves = (sure > matching) & (matching < to_end)
    drafted = np.where(leaves, matching + 1 + on[wrong], np.minimum(sure, to_end))
    hesitates = np.where(leaves, ~ends[wrong], drafted < to_end)
    if arm.min_confidence is not None:
        confident = _confident(traces, arm)
        drafted, hesitates = np.minimum(drafted, confident), hesitates & (drafted < confident)
    return Drafts(np.minimum(drafted, LONGEST_DRAFT).astype(np.uint8), hesitates)


class Hedges(NamedTuple):
    """Second choices beside the drafts of a student that nothing stops."""

    counts: Bytes
    """How many there are in the first tokens of a draft from every position ``[positions, longest draft + 1]``."""
    stands: NDArray[np.bool_]
    """Whether there is one at this position, and it is the token ``[positions]``."""


def hedges(traces: Traces, arm: Arm) -> Hedges:
    """Return where a student hedges, drafting on the path up to its first wrong token, and beyond it behind that."""
    assert arm.hedge_below is not None
    counts = np.zeros((traces.num_positions, traces.max_draft_length + 1), dtype=np.uint8)
    for k, margins in enumerate(_margins(traces, arm.student)):
        counts[:, k + 1] = counts[:, k] + (margins < arm.hedge_below)
    return Hedges(counts, (traces.floats[f"margin_{arm.student}"] < arm.hedge_below) & traces.second[arm.student])


def _confident(traces: Traces, arm: Arm) -> Ints:
    """Return behind how many tokens of a draft from every position the student's confidence is spent ``[positions]``."""
    assert arm.min_confidence is not None
    confidence = np.ones(traces.num_positions)
    spent = np.full(traces.num_positions, LONGEST_DRAFT)
    for k, margins in enumerate(_margins(traces, arm.student)):
        confidence *= arm.chance(margins.astype(np.float64))
        spent = np.where(confidence < arm.min_confidence, np.minimum(spent, k + 1), spent)
    return spent


def _margins(traces: Traces, student: str) -> Iterator[NDArray[np.float32]]:
    """Yield, token by token of drafts that nothing stops, how clear it is from every position; infinitely where there is none."""
    margin, beyond = traces.floats[f"margin_{student}"], traces.beyond[f"{BEYOND}margin_{student}"]
    positions, last = np.arange(traces.num_positions), traces.num_positions - 1
    matching = traces.accepted[student].astype(np.int64)
    wrong = np.minimum(positions + matching, last)
    lengths = np.diff(beyond.offsets)
    off_path = np.append(beyond.values, np.float32(np.inf))
    for k in range(traces.max_draft_length):
        behind = k - matching - 1
        known = (behind >= 0) & (behind < lengths[wrong])
        there = off_path[np.where(known, beyond.offsets[wrong] + behind, len(beyond.values))]
        yield np.where(behind < 0, margin[np.minimum(positions + k, last)], there)


def _beyond(traces: Traces, arm: Arm) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return how many tokens are drafted behind a wrong one at each position, and whether the last of them ends the text."""
    nested = {key: traces.beyond[f"{BEYOND}{key}_{arm.student}"] for key in _limits(arm) or ("margin",)}
    offsets = next(iter(nested.values())).offsets
    if any(not np.array_equal(other.offsets, offsets) for other in nested.values()):
        raise UserError(f"{traces.source}: the lists beyond the path of '{arm.student}' are not equally long")
    clear = _within(arm, len(next(iter(nested.values())).values), *(_values(nested.get(key)) for key in ("margin", "entropy")))
    on, lengths = np.zeros(traces.num_positions, dtype=np.int64), np.diff(offsets)
    filled = lengths > 0
    on[filled] = np.minimum(runs(clear, offsets)[offsets[:-1][filled]], lengths[filled])
    return on, (on == lengths) & (lengths < traces.max_draft_length)


def _values(nested: Nested | None) -> NDArray[np.float32] | None:
    return None if nested is None else nested.values


def _limits(arm: Arm) -> dict[str, float]:
    return {key: limit for key, limit in (("margin", arm.min_margin), ("entropy", arm.max_entropy)) if limit is not None}


def _within(arm: Arm, count: int, margin: NDArray[np.float32] | None, entropy: NDArray[np.float32] | None) -> NDArray[np.bool_]:
    """Return which of ``count`` choices are clear enough."""
    within = np.ones(count, dtype=np.bool_)
    if margin is not None and arm.min_margin is not None:
        within &= margin >= arm.min_margin
    if entropy is not None and arm.max_entropy is not None:
        within &= entropy <= arm.max_entropy
    return within


def _floats(traces: Traces, arm: Arm, key: str) -> NDArray[np.float32] | None:
    return traces.floats.get(f"{key}_{arm.student}") if key in _limits(arm) else None


def check(traces: Traces, arm: Arm) -> None:
    """Refuse an arm that watches its choices where the recording does not tell of them.

    Raises:
        UserError: Naming the arm.
    """
    hedging = arm.hedge_below is not None
    keys = {*_limits(arm), *(["margin"] if hedging or arm.min_confidence is not None else [])}
    names = [name for key in sorted(keys) for name in (f"{key}_{arm.student}", f"{BEYOND}{key}_{arm.student}")]
    known = {*traces.floats, *traces.beyond, *(SECOND + name for name in traces.second)}
    if missing := [name for name in (*names, *([SECOND + arm.student] if hedging else [])) if name not in known]:
        raise UserError(f"arms: '{arm.name}' needs the columns {', '.join(missing)}, which {traces.source} does not hold; leave it out")


class Watching:
    """What watching does to the drafts of all arms. Arms that share a student and limits share a row, whatever their length."""

    def __init__(self, traces: Traces, arms: Sequence[Arm]) -> None:
        self.watches = np.array([arm.watches for arm in arms])
        """Whether the student looks at how clear its choices are ``[arms]``."""
        self._last = traces.num_positions - 1
        self._clear_row, found = _rows([replace(arm, length=1, hedge_below=None) if arm.watches else None for arm in arms])
        kept = [drafts(traces, arm) for arm in found]
        self._clear = np.stack([k.drafted for k in kept]) if kept else None
        self._unsure = np.stack([k.hesitates for k in kept]) if kept else None
        hedging = [Arm(arm.student, 1, hedge_below=arm.hedge_below) if arm.hedge_below is not None else None for arm in arms]
        self._hedge_row, found = _rows(hedging)
        beside = [hedges(traces, arm) for arm in found]
        self._hedges = np.stack([h.counts for h in beside]) if beside else None
        self._stands = np.stack([h.stands for h in beside]) if beside else None

    @property
    def any(self) -> bool:
        """Whether any arm watches."""
        return self._clear is not None

    @property
    def hedging(self) -> bool:
        """Whether any arm has second choices."""
        return self._hedges is not None

    def limited(self, actions: Ints, position: Ints, drafted: Ints) -> tuple[Ints, NDArray[np.bool_]]:
        """Return how much of what there is room for is drafted, and whether the student hesitates."""
        if self._clear is None or self._unsure is None:
            return drafted, np.zeros(drafted.shape, dtype=np.bool_)
        row = self._clear_row[actions]
        clear = np.where(row >= 0, self._clear[row, position], drafted)
        return np.minimum(drafted, clear), (clear < drafted) & self._unsure[row, position]

    def hedged(self, actions: Ints, position: Ints, drafted: Ints, accepted: Ints) -> tuple[Ints, NDArray[np.bool_]]:
        """Return how many second choices there are, and whether one stands in place of the first wrong token."""
        if self._hedges is None or self._stands is None:
            return np.zeros_like(drafted), np.zeros(drafted.shape, dtype=np.bool_)
        row = self._hedge_row[actions]
        there = np.minimum(position + accepted, self._last)
        beside = np.where(row >= 0, self._hedges[row, position, np.minimum(drafted, self._hedges.shape[2] - 1)], 0)
        return beside, (row >= 0) & (accepted < drafted) & self._stands[row, there]


def _rows(alike: Sequence[Arm | None]) -> tuple[Ints, list[Arm]]:
    """Return the number of each among those that differ, -1 for None, and those."""
    found = sorted({arm for arm in alike if arm is not None}, key=lambda arm: arm.name)
    return np.array([-1 if arm is None else found.index(arm) for arm in alike]), found
