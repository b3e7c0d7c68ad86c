"""The drafts of one replayed text, token by token, whoever drafts each of them."""

from dataclasses import dataclass, field

import numpy as np

from dispatch_rl.decoding.arms import LOOKUP, NONE
from dispatch_rl.decoding.draft_features import Clarity
from dispatch_rl.decoding.lookup import LookupIndex
from dispatch_rl.decoding.rounds import Round, arm_name
from dispatch_rl.replay.episodes import Episodes
from dispatch_rl.replay.schema import BEYOND
from dispatch_rl.replay.token_costs import TokenCosts
from dispatch_rl.replay.traces import Traces
from dispatch_rl.replay.world import ReplayWorld

_KEYS = ("margin", "entropy")


@dataclass
class _Draft:
    """What is drafted behind a text."""

    begin: int
    """Position behind the text."""
    length: int
    """Tokens of the text, prompt included."""
    drafters: list[int] = field(default_factory=list)
    """Who drafted each token."""
    tokens: list[int | None] = field(default_factory=list)
    """The tokens (ids), where they are known: on the path, and where prompt lookup drafted."""
    stands: int = 0
    """Leading tokens that are on the path."""
    alone: bool = True
    """Whether all tokens from the first wrong one on have the same drafter."""
    ended: bool = False
    """Whether a token is known to end the text."""
    latency_ms: float = 0.0
    """Time it took."""

    @property
    def on_path(self) -> bool:
        return self.stands == len(self.drafters)

    @property
    def wrong(self) -> int:
        """Position of the first wrong token."""
        return self.begin + self.stands


class TokenDrafts:
    """Drafts and verifies along one episode.

    On the path everything is exact: who is right, how clear its choice is, who has read what. A student that is wrong goes on behind
    its own wrong token as it was recorded. If another takes over there, nothing that it drafts can stand, so what is accepted stays exact,
    but how clear its choices are was not recorded: it is assumed to choose as behind its own wrong token if it is wrong at the same
    position, else as on the path. That a wrong token of prompt lookup, or one drafted behind another's, ends the text, or that prompt
    lookup has a match behind a student's wrong token, is assumed not to happen.
    """

    def __init__(self, world: ReplayWorld, longest_draft: int) -> None:
        self.world = world
        self.traces = world.traces
        self.drafters = (*world.traces.students, LOOKUP)
        self.missing = missing(world.traces)
        longest = int((world.traces.prompt_lengths + world.traces.lengths).max()) + longest_draft + 1
        self.costs = TokenCosts(world.profile, self.drafters, longest)
        self.episode = Episodes(world, 1, reads_along=False)
        self._accepted = [world.traces.accepted[name] for name in world.traces.students]
        self._clarity = [[world.traces.floats.get(f"{key}_{name}") for key in _KEYS] for name in world.traces.students]
        self._beyond = [[world.traces.beyond.get(f"{BEYOND}{key}_{name}") for key in _KEYS] for name in world.traces.students]

    def restart(self, text: int) -> None:
        """Begin a text."""
        self.episode.restart(np.array([0]), np.array([text]))
        traces, first = self.traces, self.traces.first_position
        path = traces.path_tokens(text)
        self._end = int(traces.offsets[text + 1])
        self._index = LookupIndex() if path is not None and "prompt" in traces.table.column_names else None
        if self._index is not None and path is not None:
            self._index.extend([*traces.prompt(text), *path[:first]])
        self._begin()

    @property
    def room(self) -> int:
        """How many tokens may be drafted in this round: one less than may be emitted."""
        text = int(self.episode.texts[0])
        return int(self.traces.limits[text]) - self._draft.length - 1 - len(self._draft.drafters)

    @property
    def drafted(self) -> tuple[str, ...]:
        """Who drafted each token so far."""
        return tuple(self.drafters[drafter] for drafter in self._draft.drafters)

    @property
    def stands(self) -> int:
        """How many leading draft tokens are on the path."""
        return self._draft.stands

    def unread(self) -> list[int]:
        """Return how many tokens before the last one of text and draft each student has not read."""
        length = self._draft.length + len(self._draft.drafters)
        return [length - 1 - read for read in self._read]

    def draft(self, drafter: int) -> tuple[bool, Clarity | None, float]:
        """Let somebody draft the next token.

        Returns:
            Whether there is one; how clear the choice is, if that is known; and its latency (ms).
        """
        draft, name = self._draft, self.drafters[drafter]
        if name == LOOKUP:
            unread, proposed = 1, self._proposed()
            if proposed is None:
                return False, None, 0.0
            clarity = None
            self._add_lookup(drafter, proposed)
        else:
            if draft.ended or draft.length + len(draft.drafters) > self.world.context_limits[drafter]:
                return False, None, 0.0
            unread = draft.length + len(draft.drafters) - self._read[drafter]
            self._read[drafter] += unread
            clarity = self._add(drafter)
        goes_on = len(draft.drafters) > 1 and draft.drafters[-2] == drafter and unread == 1
        latency_ms = self.costs.draft_ms(name, unread, draft.length + len(draft.drafters) - 1, goes_on)
        draft.latency_ms += latency_ms
        return True, clarity, latency_ms

    def verify(self) -> tuple[Round, bool]:
        """Verify the draft, and return the round and whether the text has ended."""
        draft, profile = self._draft, self.world.profile
        count = min(draft.stands + 1, self._end - draft.begin)
        accepted = min(draft.stands, count)
        path, entropies = self.episode.following(0, count)
        students = self.drafted
        record = Round(
            arm=arm_name(students),
            students=students,
            drafted=tuple(draft.tokens),
            num_accepted=accepted,
            emitted=path,
            entropies_nats=entropies,
            draft_ms=draft.latency_ms,
            verify_ms=self.costs.verify_ms(students[-1] if students else NONE, len(students), draft.length),
            overhead_ms=profile.overhead_ms + profile.token_ms * count,
        )
        read = [min(read, draft.length + draft.stands) for read in self._read]
        ended = self.episode.commit(0, draft.drafters, accepted, count, read)
        if self._index is not None:
            self._index.extend([token for token in path if token is not None])
        self._begin()
        return record, ended

    def _begin(self) -> None:
        text, emitted = int(self.episode.texts[0]), int(self.episode.emitted[0])
        self._read = self.episode.read(0)
        self._draft = _Draft(int(self.traces.offsets[text]) + emitted, int(self.traces.prompt_lengths[text]) + emitted)

    def _add(self, drafter: int) -> Clarity | None:
        """Draft what a student drafts, and return how clear its choice is."""
        draft = self._draft
        place = draft.begin + len(draft.drafters)
        if draft.on_path:
            clarity = self._at(drafter, place)
            right = self._accepted[drafter][place] > 0
            self._append(drafter, int(self.traces.path[place]) if right and self.traces.path is not None else None, bool(right))
            draft.ended = place + 1 == self._end if right else self._ends(drafter, place, 0)
            return clarity
        behind = len(draft.drafters) - draft.stands - 1
        draft.alone &= draft.drafters[-1] == drafter
        self._append(drafter, None, False)
        draft.ended = draft.alone and self._ends(drafter, draft.wrong, behind + 1)
        return self._behind(drafter, draft.wrong, behind) or self._at(drafter, min(place, self._end - 1))

    def _add_lookup(self, drafter: int, proposed: int) -> None:
        draft = self._draft
        place = draft.begin + len(draft.drafters)
        right = draft.on_path and place < self._end and self.traces.path is not None and proposed == self.traces.path[place]
        if not draft.on_path:
            draft.alone &= draft.drafters[-1] == drafter
        self._append(drafter, proposed, right)
        draft.ended |= right and place + 1 == self._end

    def _append(self, drafter: int, token: int | None, right: bool) -> None:
        self._draft.stands += right
        self._draft.drafters.append(drafter)
        self._draft.tokens.append(token)

    def _proposed(self) -> int | None:
        """Return what prompt lookup proposes; nothing behind a token that is not known."""
        known = [token for token in self._draft.tokens if token is not None]
        if self._index is None or len(known) < len(self._draft.tokens):
            return None
        return self._index.find(known)[1]

    def _at(self, drafter: int, position: int) -> Clarity | None:
        """Return how clear the choice of a student is on the path."""
        values = [None if column is None else float(column[position]) for column in self._clarity[drafter]]
        return _clarity(values)

    def _behind(self, drafter: int, wrong: int, behind: int) -> Clarity | None:
        """Return how clear the choice of a student is so many tokens behind its own wrong one; None if it has none there."""
        values: list[float | None] = []
        for nested in self._beyond[drafter]:
            if nested is None:
                values.append(None)
                continue
            first, end = nested.offsets[wrong], nested.offsets[wrong + 1]
            if first + behind >= end:
                return None
            values.append(float(nested.values[first + behind]))
        return _clarity(values)

    def _ends(self, drafter: int, wrong: int, drafted: int) -> bool:
        """Return whether the token that a student drafts ``drafted`` tokens behind its own wrong one ends the text."""
        nested = next((nested for nested in self._beyond[drafter] if nested is not None), None)
        if nested is None:
            return False
        return bool(nested.offsets[wrong + 1] - nested.offsets[wrong] == drafted < self.traces.max_draft_length)


def _clarity(values: list[float | None]) -> Clarity | None:
    """Return margin and entropy; one that was not recorded has no feature, so that its value does not matter."""
    if all(value is None for value in values):
        return None
    return Clarity(*(0.0 if value is None else value for value in values))


def missing(traces: Traces) -> frozenset[str]:
    """Return which of ``margin`` and ``entropy`` a recording does not tell of every student, on the path and behind it."""
    known = {*traces.floats, *traces.beyond}
    return frozenset(key for key in _KEYS if any(not {f"{key}_{s}", f"{BEYOND}{key}_{s}"} <= known for s in traces.students))
