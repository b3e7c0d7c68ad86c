"""What drafters turn out to have been right about: recordings from elsewhere tell it, and it costs little to know.

A drafter that catches up reads every token it has not read, and so finds out at which of them it would have been right, although it was
not asked to draft there. Where ``r`` tokens are read, that is known of the first ``r + 1``, as far as they are emitted. A drafter that
takes next to no time (prompt lookup by another name, a table of n-grams) may *read along*: it makes its first forward pass in every round,
whoever drafts, so that it is known of it up to the last token. That pass is paid for by policies that look at features, and only by them.
"""

import numpy as np
from numpy.typing import NDArray

from dispatch_rl.decoding.features import ACCEPTANCE_PRIOR, HINDSIGHT_DECAYS
from dispatch_rl.replay.columns import Floats, Ints
from dispatch_rl.replay.profile import TARGET, Profile, interpolated
from dispatch_rl.replay.traces import Traces


class Hindsight:
    """The moving shares of tokens that each student would have got right, behind every token of every text.

    Args:
        traces: What was recorded.
        profile: Latencies.
        students: Those that draft.
        read_along: The cheapest students read along, as many as together take at most this share of the target's forward pass.
    """

    def __init__(self, traces: Traces, profile: Profile, students: set[str], read_along: float) -> None:
        self.shares = np.stack([_moving_shares(traces, name) for name in traces.students])
        """As features want them ``[students, states, decays]``."""
        limit_ms = read_along * _one_token_ms(profile, TARGET).min()
        costs_ms = np.array([_one_token_ms(profile, name).max() if name in students else np.inf for name in traces.students])
        cheapest = np.argsort(costs_ms, kind="stable")
        cheap = cheapest[(np.cumsum(costs_ms[cheapest]) <= limit_ms) & (limit_ms > 0)]
        self.along: Ints = np.sort(cheap)
        """Numbers of the students that read along."""

    def features(self, starts: Ints, known: Ints) -> Floats:
        """Return the features of some texts.

        Args:
            starts: State in which each text begins ``[texts]``.
            known: For how many tokens it is known whether each student would have been right ``[texts, students]``.
        """
        found: Floats = self.shares[np.arange(len(self.shares)), starts[:, None] + known]
        return found.reshape(len(starts), -1)


def _one_token_ms(profile: Profile, model: str) -> NDArray[np.float64]:
    """Return the latencies of reading one token, at the lengths of the text at which they are known."""
    latency = profile.model(model)
    # That of a first token, catch-up included: not that of a token behind a draft, which may be next to nothing.
    below, weight = latency.between(np.array([1]))
    return interpolated(np.array(latency.median_ms), below[0], weight[0])


def _moving_shares(traces: Traces, student: str) -> Floats:
    """Return the moving shares of tokens that a student would have got right ``[states, decays]``."""
    right = (traces.accepted[student] > 0)[:, None]
    starts, lengths = traces.offsets[:-1] + np.arange(traces.num_texts), traces.lengths
    decays = np.array(HINDSIGHT_DECAYS)
    shares = np.full((traces.num_positions + traces.num_texts, len(decays)), ACCEPTANCE_PRIOR)
    for t in range(int(lengths.max())):
        goes_on = lengths > t
        before = starts[goes_on] + t
        shares[before + 1] = decays * shares[before] + (1 - decays) * right[traces.offsets[:-1][goes_on] + t]
    return shares.astype(np.float32)
