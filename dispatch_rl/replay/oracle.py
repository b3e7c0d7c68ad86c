"""What no dispatcher can beat: the cheapest way through every path, with all outcomes known, by dynamic programming.

With ``V(k)`` the least latency from ``k`` emitted tokens to the end of a text of ``N``, and ``e(k, a)`` the tokens that arm ``a`` emits
there,

    V(N) = 0,    V(k) = min over a of cost(k, a) + V(k + e(k, a)).

``cost`` counts a student's first draft token as if it had read everything before, so the catch-up costs nothing: ``V`` is a true lower
bound on the latency of any dispatcher, clairvoyant ones included, and lies a little below what can be reached.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dispatch_rl.replay.world import Floats, Ints, ReplayWorld


@dataclass(frozen=True)
class Bound:
    """The least latency of some texts, and how it is reached."""

    latency_ms: Floats
    """Of each text of ``world.texts`` ``[texts]``."""
    actions: Ints
    """The best arm at every state, the first of equals ``[states]``; zero where a text has ended."""
    value_ms: Floats
    """``V``: the least latency from every state to the end of its text ``[states]``."""


def cheapest(world: ReplayWorld, actions: Sequence[int] | None = None) -> Bound:
    """Return the clairvoyant minimum over ``actions``; None means all arms."""
    traces = world.traces
    allowed = np.arange(len(world.arms)) if actions is None else np.array(actions)
    first_ms = world.cheapest_first_ms()
    value = np.zeros(traces.num_positions + traces.num_texts)
    best = np.zeros(len(value), dtype=np.int64)
    states = traces.offsets[:-1] + np.arange(traces.num_texts)
    for left in range(1, int(traces.lengths.max()) + 1):
        texts = np.flatnonzero(traces.lengths - left >= traces.first_position)
        emitted = traces.lengths[texts] - left
        outcome = world.outcomes(texts[:, None], emitted[:, None], allowed[None])
        length = (traces.prompt_lengths[texts] + emitted)[:, None]
        drafter = world.arm_drafter[allowed][None]
        cost = world.latency_ms(drafter, outcome, None, length, world.watching.watches[allowed][None])
        cost += (outcome.forwards > 0) * first_ms[drafter, length]
        here = states[texts] + emitted
        cost += value[here[:, None] + outcome.emitted]
        choice = cost.argmin(axis=1)
        value[here] = cost[np.arange(len(texts)), choice]
        best[here] = allowed[choice]
    return Bound(value[states[world.texts] + traces.first_position], best, value)


def cheapest_within(world: ReplayWorld, key: str, actions: Sequence[int] | None = None) -> tuple[str, Bound]:
    """Return the best of the bounds over groups of arms, and the group's name.

    Args:
        world: What is replayed.
        key: ``length`` groups arms of one draft length, so that only the student is chosen; ``student`` groups arms of one student, so
            that only the length is.
        actions: The arms that are grouped; None means all.
    """
    groups: dict[str, list[int]] = {}
    for action in range(len(world.arms)) if actions is None else actions:
        groups.setdefault(str(getattr(world.arms[action], key)), []).append(action)
    bounds = {name: cheapest(world, members) for name, members in groups.items()}
    name = min(bounds, key=lambda group: float(bounds[group].latency_ms.sum()))
    return name, bounds[name]
