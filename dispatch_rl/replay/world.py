"""Traces, profile and arms compiled into flat tables: what every arm would do at every position, and what it would cost."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dispatch_rl.config.replay import READ_ALONG
from dispatch_rl.decoding.arms import LOOKUP, NONE, ArmTable
from dispatch_rl.decoding.features import AVERAGE_DECAY, Feature, feature_table
from dispatch_rl.errors import UserError
from dispatch_rl.replay.hindsight import Hindsight
from dispatch_rl.replay.profile import Profile, interpolated
from dispatch_rl.replay.traces import Traces
from dispatch_rl.replay.watching import Watching, check

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_OUT_OF_REACH = 1 << 30


class Rounds(NamedTuple):
    """What some rounds do ``[rounds]``."""

    drafted: Ints
    """Draft tokens."""
    accepted: Ints
    """Leading draft tokens that stand."""
    emitted: Ints
    """Tokens added to the text."""
    hesitates: NDArray[np.bool_]
    """Whether the student made one forward pass more, and did not draft what it was not sure of."""
    hedges: Ints
    """Second choices that are judged too."""
    hedge_stands: NDArray[np.bool_]
    """Whether one of them stands."""

    @property
    def forwards(self) -> Ints:
        """Forward passes of the student, the first one with its catch-up."""
        forwards: Ints = self.drafted + self.hesitates
        return forwards


class ReplayWorld:
    """Everything that replay looks up. Drafters are numbered: the students in order, then prompt lookup, then none.

    The *state* ``offsets[text] + text + k`` is text ``text`` after ``k`` emitted tokens; every text has one more state than positions.

    Args:
        traces: What was recorded.
        profile: Latencies.
        arms: What is chosen from.
        read_along: As in :class:`~dispatch_rl.config.ReplayConfig`.

    Raises:
        UserError: An arm has no recording, is longer than what was recorded, or has no latency.
    """

    def __init__(self, traces: Traces, profile: Profile, arms: ArmTable, read_along: float = READ_ALONG) -> None:
        _check(traces, arms)
        self.traces = traces
        self.profile = profile
        self.arms = arms
        self.drafters = (*traces.students, LOOKUP, NONE)
        self.features: tuple[Feature, ...] = feature_table(traces.students, traces.missing())
        self.texts = traces.decidable
        """Texts in which there is something to decide."""
        if len(self.texts) == 0:
            raise UserError(f"{traces.source}: no text is longer than {traces.first_position} tokens, so there is nothing to decide")
        self.arm_drafter: Ints = np.array([self.drafters.index(arm.student) for arm in arms])
        self.arm_length: Ints = np.array([arm.length for arm in arms])
        self.context_limits: Ints = np.array([traces.context_limits.get(name, _OUT_OF_REACH) for name in self.drafters])
        self._compile_outcomes()
        self.watching = Watching(traces, arms)
        self._compile_costs()
        self.hindsight = Hindsight(traces, profile, self._drafting(), read_along) if traces.missing() else None
        """What drafters turn out to have been right about; None if the features need it not."""
        self.static = self._static_features()
        """Features at every state, with zeros where they depend on the rounds before ``[states, features]``."""

    def _compile_outcomes(self) -> None:
        traces = self.traces
        silent = np.zeros(traces.num_positions, dtype=np.uint8)
        lookup = traces.lookup.get("lookup_accepted", silent)
        self.accepted = np.stack([*(traces.accepted[name] for name in traces.students), lookup, silent])
        """How much of a long draft is accepted (tokens) ``[drafters, positions]``."""
        self.lookup_drafted = traces.lookup.get("lookup_drafted", silent)
        """How many tokens prompt lookup proposes ``[positions]``."""

    def _compile_costs(self) -> None:
        longest = int((self.traces.prompt_lengths + self.traces.lengths).max()) + int(self.arm_length.max()) + 1
        lengths = np.arange(longest + 1)
        counts = int(self.arm_length.max()) + 1
        judged = counts if not self.watching.hedging else 2 * counts
        self.verify_ms: Floats = np.stack([self._verify_ms(name, judged, longest) for name in self.drafters])
        """Of a draft of so many tokens behind a text of such a length ``[drafters, drafts, lengths]``."""
        self.continue_ms: Floats = np.zeros((len(self.drafters), counts, longest + 1))
        """Draft tokens after the first ``[drafters, drafts, lengths]``."""
        models = [None if name == NONE or name not in self._drafting() else self.profile.model(name) for name in self.drafters]
        points = max([len(model.queries) for model in models if model is not None], default=1)
        self.first_ms: Floats = np.zeros((len(self.drafters), points + 1, longest + 1))
        """First draft token, catch-up included, at the points of each model's grid ``[drafters, points, lengths]``."""
        self.first_below: Ints = np.zeros((len(self.drafters), longest + 2), dtype=np.int64)
        self.first_weight: Floats = np.zeros((len(self.drafters), longest + 2))
        for drafter, model in enumerate(models):
            if model is None:
                continue
            # Catching up on more tokens is never cheaper, whatever noise was measured; the bound relies on it.
            grid = np.maximum.accumulate(model.at_contexts(longest))
            self.first_ms[drafter, : len(grid)] = grid
            self.first_ms[drafter, len(grid) :] = grid[-1]
            self.first_below[drafter], self.first_weight[drafter] = model.between(np.maximum(np.arange(longest + 2), 1))
            following = model.next_at_contexts(longest)
            for m in range(2, counts):
                self.continue_ms[drafter, m] = self.continue_ms[drafter, m - 1] + following[np.minimum(lengths + m - 1, longest)]
        # Whatever a round costs besides the first draft token.
        self.rest_ms: Floats = self.continue_ms + self.verify_ms[:, :counts] + self.profile.overhead_ms
        # A round of the target alone behind every token of every text.
        shortest = int((self.traces.prompt_lengths + self.traces.first_position)[self.texts].min())
        if not self.rest_ms[-1, 0, shortest : longest - int(self.arm_length.max()) - 1].max() + self.profile.token_ms > 0:
            raise UserError("replay.profile: the target takes 0 ms at every length of these texts")

    def _verify_ms(self, drafter: str, drafts: int, longest: int) -> Floats:
        target = self.profile.verification(drafter)
        below, weight = target.between(np.arange(1, drafts + 1))
        grid, lengths = target.at_contexts(longest), np.arange(longest + 1)
        rows = (interpolated(grid, *at)[np.minimum(lengths + m, longest)] for m, at in enumerate(zip(below, weight, strict=True)))
        return np.stack(list(rows))

    def _drafting(self) -> set[str]:
        return {arm.student for arm in self.arms}

    def _static_features(self) -> NDArray[np.float32]:
        traces, names = self.traces, [feature.name for feature in self.features]
        states = traces.num_positions + traces.num_texts
        table = np.zeros((states, len(names)), dtype=np.float32)
        before = self.states_after_each_position()
        for name, column in (("entropy", "entropy"), ("top1_probability", "top1_probability"), ("margin", "margin")):
            if name in names:
                table[before, names.index(name)] = traces.floats[column]
        if "entropy_mean" in names:
            table[before, names.index("entropy_mean")] = _moving_average(traces)
        if "lookup_match" in names:
            table[before - 1, names.index("lookup_match")] = traces.lookup["lookup_match"]
        emitted = np.arange(states) - np.repeat(traces.offsets[:-1] + np.arange(traces.num_texts), traces.lengths + 1)
        table[:, names.index("position")] = emitted / np.repeat(np.maximum(traces.limits - traces.prompt_lengths, 1), traces.lengths + 1)
        if "top1_probability" in names:
            table[emitted == 0, names.index("top1_probability")] = 1.0
        bounds = [(feature.low, feature.high) for feature in self.features]
        return np.clip(table, *np.array(bounds, dtype=np.float32).T)

    def states_after_each_position(self) -> Ints:
        """Return the state that follows the emission of each position ``[positions]``."""
        texts = np.repeat(np.arange(self.traces.num_texts), self.traces.lengths)
        after: Ints = np.arange(self.traces.num_positions) + texts + 1
        return after

    def latency_ms(self, drafter: Ints, rounds: Rounds, query: Ints | None, length: Ints, watches: NDArray[np.bool_]) -> Floats:
        """Return how long rounds take.

        Args:
            drafter: Who drafts.
            rounds: What happens.
            query: Tokens that the drafter has not read; None leaves out the first draft token.
            length: Tokens of the texts before.
            watches: Whether the drafter watches its choices.
        """
        latency = self.rest_ms[drafter, rounds.drafted, length] + self.profile.token_ms * rounds.emitted
        if self.watching.hedging:
            latency += self.verify_ms[drafter, rounds.drafted + rounds.hedges, length] - self.verify_ms[drafter, rounds.drafted, length]
        if self.watching.any:
            latency += self.continue_ms[drafter, rounds.forwards, length] - self.continue_ms[drafter, rounds.drafted, length]
            latency += watches * rounds.forwards * self.profile.watch_ms
        if query is not None:
            latency += (rounds.forwards > 0) * self.first_forward_ms(drafter, query, length)
        return latency

    def first_forward_ms(self, drafter: Ints, query: Ints, length: Ints) -> Floats:
        """Return the latency of the first draft token when ``query`` tokens are unread in texts of ``length`` tokens."""
        below, weight = self.first_below[drafter, query], self.first_weight[drafter, query]
        low, high = self.first_ms[drafter, below, length], self.first_ms[drafter, below + 1, length]
        latency: Floats = np.maximum(low + weight * (high - low), 0)
        return latency

    def cheapest_first_ms(self) -> Floats:
        """Return a lower bound of the first draft token's latency whatever the catch-up ``[drafters, lengths]``."""
        drafters = range(len(self.drafters))
        return np.stack([interpolated(self.first_ms[d], self.first_below[d, 1], self.first_weight[d, 1]) for d in drafters])

    def outcomes(self, texts: Ints, emitted: Ints, actions: Ints) -> Rounds:
        """Return what the arms ``actions`` do in ``texts`` after ``emitted`` tokens; the three are broadcast."""
        traces = self.traces
        position = traces.offsets[texts] + emitted
        length = traces.prompt_lengths[texts] + emitted
        drafter = self.arm_drafter[actions]
        room = np.minimum(traces.limits[texts] - length - 1, self.context_limits[drafter] - length + 1)
        drafted = np.minimum(self.arm_length[actions], np.maximum(room, 0))
        lookup = drafter == len(traces.students)
        drafted = np.where(lookup, np.minimum(drafted, self.lookup_drafted[position]), drafted)
        drafted, hesitates = self.watching.limited(actions, position, drafted)
        accepted = np.minimum(self.accepted[drafter, position], drafted)
        beside, stands = self.watching.hedged(actions, position, drafted, accepted)
        left = traces.offsets[texts + 1] - position
        count = np.minimum(accepted + 1 + stands, left)
        return Rounds(drafted, np.minimum(accepted, count), count, hesitates, beside, stands & (accepted + 1 < left))


def _check(traces: Traces, arms: Sequence) -> None:  # type: ignore[type-arg]
    for arm in arms:
        if arm.student == LOOKUP and not traces.lookup:
            raise UserError(f"arms: '{arm.name}' needs prompt lookup, which {traces.source} does not hold; leave it out")
        if arm.student not in (*traces.students, LOOKUP, NONE):
            raise UserError(f"arms: the recording {traces.source} has no student '{arm.student}'; it has {', '.join(traces.students)}")
        if arm.length > traces.max_draft_length:
            raise UserError(
                f"arms: '{arm.name}' drafts {arm.length} tokens; {traces.source} knows of at most {traces.max_draft_length}; "
                "lower draft_length or the arm's own"
            )
        check(traces, arm)


def _moving_average(traces: Traces) -> Floats:
    """Return the moving average of the entropy after each position, as :class:`FeatureTracker` makes it ``[positions]``."""
    entropy = traces.floats["entropy"].astype(np.float64)
    average = np.zeros(len(entropy))
    first, lengths = traces.first_position, traces.lengths
    for t in range(int(lengths.max())):
        at = traces.offsets[:-1][lengths > t] + t
        before = average[at - 1] if t > 0 else np.zeros(len(at))
        average[at] = entropy[at] if t < first else AVERAGE_DECAY * before + (1 - AVERAGE_DECAY) * entropy[at]
    return average
