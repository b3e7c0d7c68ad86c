"""Many texts decoded side by side in replay, one round a step, in numpy."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dispatch_rl.decoding.features import ACCEPTANCE_DECAY, ACCEPTANCE_PRIOR
from dispatch_rl.decoding.rounds import Round
from dispatch_rl.replay.world import Floats, Ints, ReplayWorld

Observations = NDArray[np.float32]

_STATE = ("_text", "_emitted", "_begin", "_end", "_prompt", "_fraction", "_acceptance", "_read")


@dataclass(frozen=True)
class Step:
    """What one round did in every episode ``[episodes]``."""

    drafted: Ints
    accepted: Ints
    emitted: Ints
    latency_ms: Floats
    finished: NDArray[np.bool_]
    hedges: Ints
    hedge_stands: NDArray[np.bool_]

    @property
    def num_draft_tokens(self) -> Ints:
        """Draft tokens, second choices included."""
        return self.drafted + self.hedges

    @property
    def num_accepted_tokens(self) -> Ints:
        """Draft tokens that stood, second choices included."""
        accepted: Ints = self.accepted + self.hedge_stands
        return accepted


class Episodes:
    """The state of a fixed number of episodes: where each text stands, what each student has read, what was accepted lately.

    Args:
        world: What is replayed.
        count: Number of episodes.
        reads_along: Whether the students that read along do so; without, their features are not up to date, and nothing is paid.
    """

    def __init__(self, world: ReplayWorld, count: int, reads_along: bool = True) -> None:
        self.world = world
        self._along = world.hindsight.along if reads_along and world.hindsight is not None else np.zeros(0, dtype=np.int64)
        names = [feature.name for feature in world.features]
        self._fraction_column = names.index("accepted_fraction")
        students = len(world.traces.students)
        first = names.index(f"acceptance_{world.traces.students[0]}")
        self._acceptance_columns = slice(first, first + students)
        self._lag_columns = slice(first + students, first + 2 * students)
        self._hindsight_columns = slice(first + 2 * students, len(names))
        self._longest_lag = np.array([feature.high for feature in world.features[self._lag_columns]])
        self._kept = ACCEPTANCE_DECAY ** np.arange(256)
        self._rows = np.arange(count)
        self._text = np.zeros(count, dtype=np.int64)
        self._emitted = np.zeros(count, dtype=np.int64)
        self._begin = np.zeros(count, dtype=np.int64)
        self._end = np.zeros(count, dtype=np.int64)
        self._prompt = np.zeros(count, dtype=np.int64)
        self._fraction = np.zeros(count)
        # Prompt lookup and none have columns too, which mean nothing, so that a round needs no case distinction.
        self._acceptance = np.zeros((count, len(world.drafters)))
        self._read = np.zeros((count, len(world.drafters)), dtype=np.int64)
        self.restart(self._rows, np.resize(world.texts, count))

    @property
    def count(self) -> int:
        """Number of episodes."""
        return len(self._rows)

    @property
    def texts(self) -> Ints:
        """Which text each episode decodes ``[episodes]``."""
        return self._text.copy()

    @property
    def emitted(self) -> Ints:
        """Emitted tokens of each ``[episodes]``."""
        return self._emitted.copy()

    def restart(self, episodes: Ints, texts: Ints) -> None:
        """Begin ``texts`` in some ``episodes``."""
        traces = self.world.traces
        self._text[episodes] = texts
        self._emitted[episodes] = traces.first_position
        self._fraction[episodes] = 0.0
        self._acceptance[episodes] = ACCEPTANCE_PRIOR
        self._read[episodes] = 0
        self._begin[episodes], self._end[episodes] = traces.offsets[texts], traces.offsets[texts + 1]
        self._prompt[episodes] = traces.prompt_lengths[texts]

    def keep(self, which: NDArray[np.bool_]) -> None:
        """Go on with some of the episodes only ``[episodes]``."""
        for name in _STATE:
            setattr(self, name, getattr(self, name)[which])
        self._rows = np.arange(int(which.sum()))

    def branched(self, rows: Ints) -> "Episodes":
        """Return copies of the episodes ``rows``, which may repeat; what is done with them leaves these as they are."""
        copies = Episodes.__new__(Episodes)
        copies.__dict__.update(self.__dict__)
        for name in _STATE:
            setattr(copies, name, getattr(self, name)[rows])
        copies._rows = np.arange(len(rows))
        return copies

    def state(self) -> dict[str, NDArray[Any]]:
        """Return where every episode stands."""
        return {f"episodes{name}": getattr(self, name) for name in _STATE}

    def restore(self, state: dict[str, NDArray[Any]]) -> None:
        """Go on from a :meth:`state`.

        Raises:
            ValueError: It is that of another number of episodes.
        """
        if len(state["episodes_text"]) != self.count:
            raise ValueError(f"the state is that of {len(state['episodes_text'])} episodes, not of {self.count}")
        for name in _STATE:
            setattr(self, name, state[f"episodes{name}"].copy())

    def step(self, actions: Ints) -> Step:
        """Do one round with the arm ``actions[i]`` in every episode."""
        world, rows = self.world, self._rows
        drafter = world.arm_drafter[actions]
        length = self._prompt + self._emitted
        outcome = world.outcomes(self._text, self._emitted, actions)
        drafted, accepted, emitted = outcome[:3]
        read, forwards = self._read[rows, drafter], outcome.forwards
        latency_ms = world.latency_ms(drafter, outcome, length - read, length, world.watching.watches[actions])
        if len(self._along):
            latency_ms += self._along_ms(drafter, length)
            self._read[:, self._along] = np.where(self._along == drafter[:, None], self._read[:, self._along], length[:, None])
        self._read[rows, drafter] = np.where(forwards > 0, length + np.minimum(forwards - 1, accepted), read)
        kept = self._kept[accepted]
        believed = kept * self._acceptance[rows, drafter] + (1 - kept)
        self._acceptance[rows, drafter] = np.where(accepted < drafted, ACCEPTANCE_DECAY * believed, believed)
        self._fraction = accepted / np.maximum(drafted, 1)
        self._emitted += emitted
        return Step(drafted, accepted, emitted, latency_ms, self._begin + self._emitted >= self._end, outcome.hedges, outcome.hedge_stands)

    def observations(self, episodes: Ints | None = None) -> Observations:
        """Return the features of some ``episodes``, None meaning all, in an array of their own ``[episodes, features]``."""
        world, which = self.world, slice(None) if episodes is None else episodes
        emitted = self._emitted[which]
        observed = world.static.take(self._begin[which] + self._text[which] + emitted, axis=0)
        students = len(world.traces.students)
        observed[:, self._fraction_column] = self._fraction[which]
        observed[:, self._acceptance_columns] = self._acceptance[which, :students]
        lags = (self._prompt[which] + emitted - 1)[:, None] - self._read[which, :students]
        observed[:, self._lag_columns] = np.clip(lags, 0, self._longest_lag)
        if world.hindsight is not None:
            starts = self._begin[which] + self._text[which]
            observed[:, self._hindsight_columns] = world.hindsight.features(starts, self._known(which))
        return observed

    def _known(self, which: Ints | slice) -> Ints:
        """Return for how many tokens it is known whether each student would have been right ``[episodes, students]``."""
        emitted = self._emitted[which][:, None]
        read = self._read[which, : len(self.world.traces.students)]
        # A student that has read nothing was never asked.
        known: Ints = np.where(read > 0, np.clip(read + 1 - self._prompt[which][:, None], 0, emitted), 0)
        known[:, self._along] = emitted
        return known

    def _along_ms(self, drafter: Ints, length: Ints) -> Floats:
        """Return what the forward passes of those take that read along in a round of ``drafter`` ``[episodes]``."""
        total_ms = np.zeros(len(drafter))
        for student in self._along:
            query = length - self._read[:, student]
            total_ms += (drafter != student) * self.world.first_forward_ms(np.full(len(drafter), student), query, length)
        return total_ms

    def commit(self, episode: int, drafters: Sequence[int], accepted: int, emitted: int, read: Sequence[int]) -> bool:
        """Take in a round that was drafted token by token, and return whether the text has ended.

        Args:
            episode: Which one.
            drafters: Who drafted each token.
            accepted: Leading draft tokens that stand.
            emitted: Tokens added to the text.
            read: How much of the text each student has read afterwards (tokens).
        """
        acceptance = self._acceptance[episode]
        for i, drafter in enumerate(drafters[: accepted + 1]):
            acceptance[drafter] = ACCEPTANCE_DECAY * acceptance[drafter] + (1 - ACCEPTANCE_DECAY) * (i < accepted)
        self._fraction[episode] = accepted / max(len(drafters), 1)
        self._emitted[episode] += emitted
        self._read[episode, : len(read)] = read
        return bool(self._begin[episode] + self._emitted[episode] >= self._end[episode])

    def read(self, episode: int) -> list[int]:
        """Return how much of the text each student has read (tokens)."""
        read: list[int] = self._read[episode, : len(self.world.traces.students)].tolist()
        return read

    def following(self, episode: int, count: int) -> tuple[tuple[int | None, ...], tuple[float, ...]]:
        """Return the next ``count`` tokens of an episode's path and their entropies, as far as they were recorded."""
        traces = self.world.traces
        there = slice(begin := int(self._begin[episode] + self._emitted[episode]), begin + count)
        path = (None,) * count if traces.path is None else tuple(traces.path[there].tolist())
        return path, tuple(traces.floats["entropy"][there].tolist()) if "entropy" in traces.floats else ()

    def record(self, episode: int, action: int) -> Round:
        """Return the :class:`Round` that ``action`` is about to be in an episode, without doing it."""
        world, emitted = self.world, int(self._emitted[episode])
        outcome = world.outcomes(self._text[[episode]], self._emitted[[episode]], np.array([action]))
        drafted, accepted, count = (int(n[0]) for n in outcome[:3])
        arm, drafter = world.arms[action], int(world.arm_drafter[action])
        length = int(self._prompt[episode]) + emitted
        at = [np.array([n]) for n in (drafter, length - self._read[episode, drafter], length)]
        total_ms = float(world.latency_ms(at[0], outcome, at[1], at[2], world.watching.watches[[action]])[0])
        verify_ms = float(world.verify_ms[drafter, drafted + int(outcome.hedges[0]), length])
        overhead_ms = world.profile.overhead_ms + world.profile.token_ms * count
        along_ms = float(self._along_ms(np.full(self.count, drafter), self._prompt + self._emitted)[episode])
        path, entropies = self.following(episode, count)
        return Round(
            arm=arm.name,
            students=(arm.student,) * drafted,
            drafted=(*path[:accepted], *(None,) * (drafted - accepted)),
            num_accepted=accepted,
            emitted=path,
            entropies_nats=entropies,
            draft_ms=max(total_ms - verify_ms - overhead_ms, 0.0) if outcome.forwards[0] else 0.0,
            verify_ms=verify_ms,
            overhead_ms=overhead_ms + along_ms,
            num_hedges=int(outcome.hedges[0]),
            hedge_stood=bool(outcome.hedge_stands[0]),
        )


def joined(parts: Sequence[Episodes]) -> Episodes:
    """Return copies of the episodes of all ``parts``, which replay one world."""
    copies = parts[0].branched(np.arange(0))
    for name in _STATE:
        setattr(copies, name, np.concatenate([getattr(part, name) for part in parts]))
    copies._rows = np.arange(len(copies._text))
    return copies
