"""How far students draft that stop where their choice is unclear, from everywhere on a path."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dispatch_rl.decoding.arms import Arm
from dispatch_rl.errors import UserError
from dispatch_rl.replay.columns import Bytes, Nested, runs
from dispatch_rl.replay.schema import BEYOND, LONGEST_DRAFT
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
    sure = runs(_within(arm, _floats(traces, arm, "margin"), _floats(traces, arm, "entropy")), traces.offsets).astype(np.int64)
    to_end = np.repeat(traces.offsets[1:], traces.lengths) - positions
    wrong = np.minimum(positions + matching, traces.num_positions - 1)
    on, ends = _beyond(traces, arm)
    # Behind the wrong token: one more, and as many as are clear there.
    leaves = (sure > matching) & (matching < to_end)
    drafted = np.where(leaves, matching + 1 + on[wrong], np.minimum(sure, to_end))
    hesitates = np.where(leaves, ~ends[wrong], drafted < to_end)
    return Drafts(np.minimum(drafted, LONGEST_DRAFT).astype(np.uint8), hesitates)


def _beyond(traces: Traces, arm: Arm) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return how many tokens are drafted behind a wrong one at each position, and whether the last of them ends the text."""
    nested = {key: traces.beyond[f"{BEYOND}{key}_{arm.student}"] for key in _limits(arm)}
    offsets = next(iter(nested.values())).offsets
    if any(not np.array_equal(other.offsets, offsets) for other in nested.values()):
        raise UserError(f"{traces.source}: the lists beyond the path of '{arm.student}' are not equally long")
    clear = _within(arm, *(_values(nested.get(key)) for key in ("margin", "entropy")))
    on, lengths = np.zeros(traces.num_positions, dtype=np.int64), np.diff(offsets)
    filled = lengths > 0
    on[filled] = np.minimum(runs(clear, offsets)[offsets[:-1][filled]], lengths[filled])
    return on, (on == lengths) & (lengths < traces.max_draft_length)


def _values(nested: Nested | None) -> NDArray[np.float32] | None:
    return None if nested is None else nested.values


def _limits(arm: Arm) -> dict[str, float]:
    return {key: limit for key, limit in (("margin", arm.min_margin), ("entropy", arm.max_entropy)) if limit is not None}


def _within(arm: Arm, margin: NDArray[np.float32] | None, entropy: NDArray[np.float32] | None) -> NDArray[np.bool_]:
    clear = [values >= limit for values, limit in ((margin, arm.min_margin),) if values is not None and limit is not None]
    clear += [values <= limit for values, limit in ((entropy, arm.max_entropy),) if values is not None and limit is not None]
    within: NDArray[np.bool_] = np.logical_and.reduce(clear)
    return within


def _floats(traces: Traces, arm: Arm, key: str) -> NDArray[np.float32] | None:
    return traces.floats.get(f"{key}_{arm.student}") if key in _limits(arm) else None


def check(traces: Traces, arm: Arm) -> None:
    """Refuse an arm that hesitates where the recording does not say when.

    Raises:
        UserError: Naming the arm.
    """
    names = [name for key in _limits(arm) for name in (f"{key}_{arm.student}", f"{BEYOND}{key}_{arm.student}")]
    if missing := [name for name in names if name not in {*traces.floats, *traces.beyond}]:
        raise UserError(f"arms: '{arm.name}' needs the columns {', '.join(missing)}, which {traces.source} does not hold; leave it out")
