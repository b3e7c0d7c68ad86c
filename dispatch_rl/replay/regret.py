"""Where a policy loses time against the clairvoyant bound, round by round along its own way through the texts.

With ``V`` of :mod:`dispatch_rl.replay.oracle`, a round from ``k`` emitted tokens that emits ``e`` more loses

    latency + V(k + e) - V(k) >= 0,

and the losses of all rounds of a text add up to exactly its latency less ``V`` at its beginning. A part of each loss is the student's
catch-up, which ``V`` leaves out; the rest is the choice's.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dispatch_rl.decoding.rounds import RoundTable
from dispatch_rl.replay.oracle import Bound
from dispatch_rl.replay.world import Floats, ReplayWorld

TOO_LONG, TOO_SHORT, WRONG_STUDENT, OTHER = "drafted too long", "drafted too short", "wrong student", "checks and second choices"
CATCH_UP = "catch-up"
MISSED = (TOO_LONG, TOO_SHORT, WRONG_STUDENT, OTHER, CATCH_UP)
"""What time is lost by. Who drafts where the oracle would not drafts too long; two that draft as much with the same student may still
differ in what they check and in second choices."""


@dataclass(frozen=True)
class Regret:
    """What some rounds lose."""

    choice_ms: Floats
    """By the choice of the arm ``[rounds]``."""
    catch_up_ms: Floats
    """By the student's catch-up ``[rounds]``."""
    missed: NDArray[np.str_]
    """How the choice differs from the oracle's from there; means nothing where nothing is lost ``[rounds]``."""


def regret(world: ReplayWorld, rounds: RoundTable, bound: Bound) -> Regret:
    """Return what the rounds of a replay of all texts of ``world`` lose against ``bound``, found on the same world."""
    numbers = {arm.name: action for action, arm in enumerate(world.arms)}
    names, place = np.unique(rounds.arm, return_inverse=True)
    actions = np.array([numbers[name] for name in names])[place]
    texts = world.texts[rounds.text]
    length = world.traces.prompt_lengths[texts] + rounds.position
    states = world.traces.offsets[texts] + texts + rounds.position
    drafter, mine = world.arm_drafter[actions], world.outcomes(texts, rounds.position, actions)
    caught_up = world.latency_ms(drafter, mine, None, length, world.watching.watches[actions])
    caught_up += (mine.forwards > 0) * world.cheapest_first_ms()[drafter, length]
    best = bound.actions[states]
    theirs = world.outcomes(texts, rounds.position, best)
    both = (mine.drafted > 0) & (theirs.drafted > 0)
    missed = np.select(
        [both & (drafter != world.arm_drafter[best]), mine.drafted > theirs.drafted, mine.drafted < theirs.drafted],
        [WRONG_STUDENT, TOO_LONG, TOO_SHORT],
        OTHER,
    )
    value = bound.value_ms
    return Regret(caught_up + value[states + mine.emitted] - value[states], rounds.latency_ms - caught_up, missed)
