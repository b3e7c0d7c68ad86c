"""What drafting and verifying cost when a round is dispatched token by token, from the profile."""

from collections.abc import Sequence

import numpy as np

from dispatch_rl.decoding.arms import NONE, RESERVED_NAMES
from dispatch_rl.replay.profile import Floats, ForwardLatency, Profile


class TokenCosts:
    """Latencies of single forward passes. For a draft of one student they add up to those of an arm that watches its choices.

    Args:
        profile: What was measured.
        drafters: Students, and prompt lookup.
        longest: Longest text, draft included (tokens).

    Raises:
        UserError: The profile lacks one of the students.
    """

    def __init__(self, profile: Profile, drafters: Sequence[str], longest: int) -> None:
        self._profile = profile
        models = {name: profile.model(name) for name in drafters}
        # As for arms, reading more tokens is never cheaper.
        self._first = {name: _Grid(model, np.maximum.accumulate(model.at_contexts(longest))) for name, model in models.items()}
        self._next = {name: model.next_at_contexts(longest) for name, model in models.items()}
        targets = {name: profile.verification(name) for name in (*drafters, NONE)}
        self._verify = {name: _Grid(target, target.at_contexts(longest)) for name, target in targets.items()}

    def draft_ms(self, drafter: str, unread: int, length: int, goes_on: bool) -> float:
        """Return the latency of a draft token.

        Args:
            drafter: Who drafts.
            unread: Tokens that it has not read.
            length: Tokens of the text and of the draft so far.
            goes_on: Whether it drafted the last token too.
        """
        forward = float(self._next[drafter][length]) if goes_on else self._first[drafter].at(unread, length)
        return forward + (0.0 if drafter in RESERVED_NAMES else self._profile.watch_ms)

    def verify_ms(self, last_drafter: str, drafted: int, length: int) -> float:
        """Return the latency of the target's forward pass over ``drafted`` tokens behind a text of ``length`` tokens.

        Args:
            last_drafter: Who drafted the last token, or none: the target may be slower behind some student.
            drafted: Draft tokens.
            length: Tokens of the text.
        """
        return self._verify[last_drafter].at(drafted + 1, length + drafted)


class _Grid:
    """Latencies of a model between the points that were measured."""

    def __init__(self, model: ForwardLatency, at_contexts: Floats) -> None:
        self._grid = at_contexts
        self._below, self._weight = model.between(np.maximum(np.arange(at_contexts.shape[1] + 1), 1))

    def at(self, query: int, context: int) -> float:
        """Return the latency of reading ``query`` tokens up to a text of ``context`` tokens."""
        below = int(self._below[query])
        low, high = self._grid[below, context], self._grid[min(below + 1, len(self._grid) - 1), context]
        return max(float(low + self._weight[query] * (high - low)), 0.0)
