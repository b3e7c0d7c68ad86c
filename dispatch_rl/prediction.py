"""How long replay says that texts take to decode live, on the machine as it is now.

A machine that others use too is faster or slower than when its latencies were measured, and not equally so for large and small models.
So every text is also decoded by probes, which do for some rounds what one of the policies would do, then what another would. Their
rounds say how fast each part is now: drafting by each drafter, and everything else in a round of each drafter. Nothing of the decoding
that is predicted goes in but the arms that were chosen and the time it took to choose them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from dispatch_rl.decoding.loop import DecodedText
from dispatch_rl.decoding.rounds import Round
from dispatch_rl.policies.base import Observation, Policy
from dispatch_rl.replay.measuring import STRETCH
from dispatch_rl.replay.running import predicted_rounds
from dispatch_rl.replay.world import ReplayWorld

Floats = NDArray[np.float64]

_ENOUGH = 40
"""With fewer rounds of a drafter than this, what all drafters say about the machine is more certain than what it says alone."""


class Probe(Policy):
    """Follows a random one of some policies for some rounds, as latencies are measured, then another."""

    def __init__(self, policies: Sequence[Policy], seed: int) -> None:
        self.policies = policies
        self._rng = np.random.default_rng(seed)
        self._left, self._followed = 0, policies[0]

    def reset(self) -> None:
        for policy in self.policies:
            policy.reset()

    def __call__(self, observation: Observation) -> int:
        if self._left == 0:
            self._left, self._followed = STRETCH, self.policies[int(self._rng.integers(len(self.policies)))]
        self._left -= 1
        return self._followed(observation)


@dataclass(frozen=True)
class Prediction:
    """What replay says about some texts."""

    latency_ms: dict[str, Floats]
    """Decoding time by policy; NaN where a text is not the recorded one ``[texts]``."""
    drift: float | None
    """How much slower the machine is than when it was profiled; None if nothing is known."""


def predict(
    world: ReplayWorld,
    recorded: Sequence[int | None],
    texts: Mapping[str, Sequence[DecodedText]],
    probes: Sequence[Sequence[DecodedText]],
) -> Prediction:
    """Predict the decoding time of every text under every policy from the arms that were chosen.

    Args:
        world: Traces, latencies and arms.
        recorded: Number of each text in the recording; None if it was not recorded.
        texts: What was decoded, by policy.
        probes: The same texts, each time as a :class:`Probe` decoded them.
    """
    known = [
        [(text, there) for text in probed if (there := _replayed(world, number, text))]
        for number, *probed in zip(recorded, *probes, strict=True)
    ]
    if not any(known):
        return Prediction({name: np.full(len(decoded), np.nan) for name, decoded in texts.items()}, None)
    speed = _Speed.of(world, list(chain.from_iterable(known)))
    # Loads come and go within seconds, so each text is also held against the probes' decoding of the same text.
    local = [speed.local(pairs) if pairs else np.nan for pairs in known]

    def decoding_ms(number: int | None, text: DecodedText, slower: float) -> float:
        there = _replayed(world, number, text)
        return float("nan") if there is None else slower * speed.rounds_ms(there) + text.decision_ms

    latency_ms = {name: np.array(list(map(decoding_ms, recorded, decoded, local))) for name, decoded in texts.items()}
    return Prediction(latency_ms, speed.drift)


@dataclass(frozen=True)
class _Speed:
    """How fast the machine is."""

    world: ReplayWorld
    factors: Floats
    """Measured / predicted time of drafting and of the rest of a round, by drafter ``[2, drafters]``."""
    between_ms: float
    """Time between two rounds besides the decision."""
    drift: float
    """Measured / predicted time of all rounds, less one."""

    @classmethod
    def of(cls, world: ReplayWorld, pairs: Sequence[tuple[DecodedText, Sequence[Round]]]) -> "_Speed":
        """Compare decoded texts with what replay says about their rounds."""
        measured = np.sum([_parts(world, text.rounds) for text, _ in pairs], axis=0)
        predicted = np.sum([_parts(world, there) for _, there in pairs], axis=0)
        between = sum(cls.time_of(text) - sum(record.latency_ms for record in text.rounds) for text, _ in pairs)
        drift = measured[1:].sum() / predicted[1:].sum() - 1
        return cls(world, _factors(measured, predicted), between / float(measured[0].sum()), float(drift))

    def local(self, pairs: Sequence[tuple[DecodedText, Sequence[Round]]]) -> float:
        """Return how much slower than this some texts were decoded."""
        return sum(self.time_of(text) for text, _ in pairs) / sum(self.rounds_ms(there) for _, there in pairs)

    @staticmethod
    def time_of(text: DecodedText) -> float:
        """Return the decoding time without the decisions (ms)."""
        return text.decoding_ms - text.decision_ms

    def rounds_ms(self, rounds: Sequence[Round]) -> float:
        """Return how long rounds of replay take on this machine, without the decisions."""
        return float((self.factors * _parts(self.world, rounds)[1:]).sum()) + self.between_ms * len(rounds)


def _replayed(world: ReplayWorld, number: int | None, text: DecodedText) -> list[Round] | None:
    """Return the rounds of a text as replay has them; None if it is not the recorded one or has no round."""
    if number is None or world.traces.path_tokens(number) != text.tokens or not text.rounds:
        return None
    names = [arm.name for arm in world.arms]
    return predicted_rounds(world, number, [names.index(record.arm) for record in text.rounds])


def _parts(world: ReplayWorld, rounds: Sequence[Round]) -> Floats:
    """Return the number of rounds, the time of drafting and the time of the rest (ms), by drafter ``[3, drafters]``."""
    drafters = {arm.name: world.drafters.index(arm.student) for arm in world.arms}
    parts = np.zeros((3, len(world.drafters)))
    for record in rounds:
        parts[:, drafters[record.arm]] += (1, record.draft_ms, record.latency_ms - record.draft_ms)
    return parts


def _factors(measured: Floats, predicted: Floats) -> Floats:
    """Return measured / predicted time of both parts by drafter ``[2, drafters]``, each from ``[3, drafters]``."""
    overall = measured[1:].sum(axis=1, keepdims=True) / np.maximum(predicted[1:].sum(axis=1, keepdims=True), 1e-12)
    alone = (measured[0] >= _ENOUGH) & (predicted[1:] > 0)
    return np.where(alone, measured[1:] / np.maximum(predicted[1:], 1e-12), overall)
