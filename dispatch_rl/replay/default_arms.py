"""Arms for a recording from elsewhere, if none are named: every drafter in it, at every length that it and the latencies know of."""

from dispatch_rl.decoding.arms import LOOKUP, NONE, Arm
from dispatch_rl.replay.profile import Profile
from dispatch_rl.replay.traces import Traces

_LENGTHS = (1, 2, 3, 4, 6, 8, 12, 16)
_USUAL = 4
"""A drafter's first arm has this length, since some baselines choose among drafters by their first arms."""


def default_arms(traces: Traces, profile: Profile) -> list[Arm]:
    """Return arms for all drafters, and none."""
    counts = {name: traces.accepted[name] for name in traces.students}
    if traces.lookup:
        counts[LOOKUP] = traces.lookup["lookup_accepted"]
    reach = {name: min(int(accepted.max(initial=0)), traces.max_draft_length) for name, accepted in counts.items()}
    drafting = (Arm(name, length) for name, longest in reach.items() for length in _lengths(min(longest, _verified(profile, name))))
    return [*drafting, Arm(NONE)]


def _verified(profile: Profile, student: str) -> int:
    """Return how long drafts (tokens) may be that the target's latencies, where they differ, do not have to be prolonged far for."""
    queries = profile.verification(student).queries
    return max(queries[-1] - 1, _USUAL) if len(queries) > 1 else _LENGTHS[-1]


def _lengths(longest: int) -> list[int]:
    """Return draft lengths up to ``longest``, that one too, in the order of the arms."""
    longest = max(1, min(longest, _LENGTHS[-1]))
    return list(dict.fromkeys([min(_USUAL, longest), *(length for length in _LENGTHS if length < longest), longest]))
