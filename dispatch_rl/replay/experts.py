"""Which fixed arms an adaptive policy tries, chosen on validation texts, and for texts unlike them.

What is best on the texts at hand is not enough: all of them may be of one sort. Should others be easy for a student, its longest draft is
best there, whatever was best here; should they be hard, a *cautious* one: short, or one that stops by itself. So every student has one
arm of either kind.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dispatch_rl.decoding.arms import NONE
from dispatch_rl.policies.fixed import FixedPolicy
from dispatch_rl.replay.running import Replayed, replay
from dispatch_rl.replay.world import Ints, ReplayWorld

_SHORT = range(2, 4)
"""Draft lengths for hard texts, of arms that do not stop by themselves."""
_STRETCH = 16
"""Texts are parted into stretches of so many tokens."""
_HARD = 0.2
"""Share of the stretches that count as hard for a student: those in which it is right least often."""


def experts(world: ReplayWorld) -> list[int]:
    """Return the actions that an adaptive policy tries, in that order.

    The arm that is best on all texts; then, of every student, the arm of its longest drafts that is best on all texts, and the cautious
    one that is best where the student is least often right; the target alone at last, if it is among the arms.
    """
    runs = [replay(world, FixedPolicy(action)) for action in range(len(world.arms))]
    total = np.array([run.latency_ms.sum() for run in runs])
    found = [int(total.argmin())]
    for drafter, name in enumerate(world.drafters):
        mine = [action for action, arm in enumerate(world.arms) if arm.student == name]
        if not mine or name == NONE:
            continue
        longest = max(world.arms[action].length for action in mine)
        found.append(min((action for action in mine if world.arms[action].length == longest), key=lambda action: total[action]))
        cautious = [action for action in mine if world.arms[action].length in _SHORT or world.arms[action].stops]
        if cautious:
            found.append(cautious[_best_where(_hard(world, drafter), [runs[action] for action in cautious])])
    found += [action for action, arm in enumerate(world.arms) if arm.student == NONE]
    return list(dict.fromkeys(found))


def _hard(world: ReplayWorld, drafter: int) -> NDArray[np.bool_]:
    """Return which stretches are hard for a drafter ``[texts, stretches]``."""
    traces = world.traces
    lengths = traces.lengths[world.texts]
    right = np.full((len(lengths), _stretch(np.array([lengths.max()]))[0] + 1), np.inf)
    for row, text in enumerate(world.texts):
        accepted = world.accepted[drafter, traces.offsets[text] : traces.offsets[text + 1]]
        stretch = _stretch(np.arange(len(accepted)))
        right[row, : stretch[-1] + 1] = np.bincount(stretch, accepted) / np.bincount(stretch)
    hard: NDArray[np.bool_] = right <= np.quantile(right[np.isfinite(right)], _HARD)
    return hard


def _best_where(there: NDArray[np.bool_], runs: Sequence[Replayed]) -> int:
    """Return which of the ``runs`` took least per token in some of the stretches."""
    chosen = [there[run.rounds.text, _stretch(run.rounds.position)] for run in runs]
    taken = [run.rounds.latency_ms[c].sum() / max(run.rounds.emitted[c].sum(), 1) for run, c in zip(runs, chosen, strict=True)]
    return int(np.argmin(taken))


def _stretch(positions: Ints) -> Ints:
    return positions // _STRETCH
