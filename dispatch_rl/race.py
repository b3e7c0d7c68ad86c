"""A run of policy iteration: several starts, metrics, checkpoints, the best policy."""

from collections.abc import Callable, Mapping, Sequence
from math import inf
from time import monotonic
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from dispatch_rl import checkpoints
from dispatch_rl.config import PolicyIterationConfig
from dispatch_rl.decoding.arms import LOOKUP, NONE
from dispatch_rl.iteration import PolicyIteration
from dispatch_rl.replay.world import ReplayWorld
from dispatch_rl.selection import Selection

Learner = TypeVar("Learner", bound=PolicyIteration)


class Race(Generic[Learner]):
    """Learners of which each begins with one student alone: after a heat of each, the fastest on validation texts goes on, with all arms.

    Where a student is used often, using it once more costs little, since others' tokens are caught up on sooner or later; so policies that
    do with fewer students may be faster and out of reach, whatever single arm is changed. Beginning with one student, a policy takes up
    another only where that pays for all of its catching up. Prompt lookup and the target alone are always there. If there are more starts
    than students, the next has all arms from the beginning, as a single one has, and then it is the students' turn again, with other seeds.

    Args:
        begin: Returns a new learner, given a seed and the actions that it may take until it goes on; None means all.
        world: What is learned from.
        config: How many start, and how long a heat is.
        seed: Of the first; those of the others follow from it.
    """

    def __init__(
        self, begin: Callable[[int, Sequence[int] | None], Learner], world: ReplayWorld, config: PolicyIterationConfig, seed: int
    ) -> None:
        self._begin, self._world, self._config, self._seed = begin, world, config, seed
        self.starts = config.starts if config.heat_length else 1
        """How many begin."""
        self._learners: list[Learner] = []
        self._best_ms: list[float] = []
        """What each start came to in its heat (ms per token)."""
        self._next_start()

    @property
    def learner(self) -> Learner:
        """Who learns now."""
        return self._learners[-1]

    @property
    def start(self) -> int:
        """Which start that is, from 1."""
        return 1 + (self._fastest() if self._decided else len(self._best_ms) - 1)

    @property
    def done(self) -> int:
        """Iterations that are done, those of all heats together."""
        return (len(self._best_ms) - 1) * self._config.heat_length + self.learner.iteration

    @property
    def finished(self) -> bool:
        """Whether the one that went on has done all its iterations."""
        return self.learner.iteration == self._config.iterations

    @property
    def _decided(self) -> bool:
        return len(self._learners) == 1 and len(self._best_ms) == self.starts

    def judge(self, latency_ms: float) -> None:
        """Take in what validation says (ms per token) of the learner's last iteration; with it, the turn of another may come."""
        if self._decided:
            return
        self._best_ms[-1] = min(self._best_ms[-1], latency_ms)
        if self.learner.iteration < self._config.heat_length:
            return
        if len(self._learners) < self.starts:
            self._next_start()
        else:
            self._learners = [self._learners[self._fastest()]]
            self.learner.open()

    def _fastest(self) -> int:
        return int(np.argmin(self._best_ms))

    def _next_start(self) -> None:
        number = len(self._learners)
        seed = int(np.random.SeedSequence([self._seed, number]).generate_state(1)[0]) if number else self._seed
        self._learners.append(self._begin(seed, alone(self._world, number) if self.starts > 1 else None))
        self._best_ms.append(inf)

    def state(self) -> dict[str, NDArray[Any]]:
        """Return all that the next iteration depends on."""
        arrays = {f"{i}/{key}": array for i, learner in enumerate(self._learners) for key, array in learner.state().items()}
        return {**arrays, "best_ms": np.array(self._best_ms, dtype=np.float64)}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on from a :meth:`state`."""
        tensors = dict(state)
        self._best_ms = tensors.pop("best_ms").tolist()
        parts: dict[int, dict[str, NDArray[Any]]] = {}
        for name, array in tensors.items():
            number, _, key = name.partition("/")
            parts.setdefault(int(number), {})[key] = array
        self._learners = [self._begin(self._seed, None) for _ in parts]
        for i, learner in enumerate(self._learners):
            learner.restore(parts[i])


def alone(world: ReplayWorld, number: int) -> list[int] | None:
    """Return the actions of one student, of prompt lookup and of the target alone; None, meaning all, once each student had its turn."""
    students = [name for name in world.traces.students if any(arm.student == name for arm in world.arms)]
    turns = len(students) + 1
    if len(students) < 2 or number % turns == len(students):
        return None
    taken = (students[number % turns], LOOKUP, NONE)
    return [action for action, arm in enumerate(world.arms) if arm.student in taken]


def iterate(race: Race[PolicyIteration], selection: Selection, progress: Callable[[int, str], None]) -> None:
    """Let learners do all their iterations, or those that are left of an interrupted run.

    Args:
        race: New.
        selection: Where policies and metrics go.
        progress: Told the number of states learned from and a line about them.
    """
    config = race.learner.config
    began, before = monotonic(), 0.0
    folder = checkpoints.find(selection.run.state)
    if folder is None:
        selection.tracking.rewind(-1)
    else:
        kept = checkpoints.read_state(folder, lambda _, arrays: race.restore(arrays))
        selection.best, before = kept["best"], kept["seconds"]
        selection.tracking.rewind(race.done * config.states)
        print(f"going on after {race.done} of {config.all_iterations} iterations")
    while not race.finished:
        lesson, start = race.learner.step(), race.start
        step, seconds = race.done * config.states, before + monotonic() - began
        # How much better than an arm taken blindly the best of each state is: what there is to learn.
        row = {"learning/states": float(len(lesson.advantages)), "learning/best_advantage_ms": float(lesson.advantages.min(axis=1).mean())}
        row |= {"decoding/policy_entropy_nats": race.learner.action_entropy(), "learning/start": start, "time/seconds": round(seconds, 3)}
        selection.tracking.log(step, row)
        latency_ms = selection.consider(step, race.learner.policy())
        race.judge(latency_ms)
        checkpoints.write_state(selection.run.state, race.state(), {"extra": {"best": selection.best, "seconds": seconds}})
        progress(step, f"start {start} of {race.starts}: {latency_ms:.3f} ms per token on validation texts")
