"""How long replay says that texts take to decode live, on the machine as it is now.

A machine that others use too is faster or slower than when its latencies were measured, and not equally so for large and small models.
So every text is also decoded once by a probe, with random arms, each for some rounds. Its rounds say how fast each part is now: drafting
by each drafter, and everything else in a round of each drafter. Nothing of the policies that are predicted goes in but the arms that they
chose and the time they took to choose.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dispatch_rl.decoding.loop import DecodedText
from dispatch_rl.decoding.rounds import Round
from dispatch_rl.policies.base import Observation
from dispatch_rl.policies.fixed import RandomPolicy
from dispatch_rl.replay.measuring import STRETCH
from dispatch_rl.replay.running import predicted_rounds
from dispatch_rl.replay.world import ReplayWorld

Floats = NDArray[np.float64]

_ENOUGH = 40
"""With fewer rounds of a drafter than this, what all drafters say about the machine is more certain than what it says alone."""


class Probe(RandomPolicy):
    """Takes a random arm for some rounds, then another, as latencies are measured."""

    def __init__(self, num_actions: int, seed: int) -> None:
        super().__init__(num_actions, seed)
        self._left, self._action = 0, 0

    def __call__(self, observation: Observation) -> int:
        if self._left == 0:
            self._left, self._action = STRETCH, super().__call__(observation)
        self._left -= 1
        return self._action


@dataclass(frozen=True)
class Prediction:
    """What replay says about some texts."""

    latency_ms: dict[str, Floats]
    """Decoding time by policy; NaN where a text is not the recorded one ``[texts]``."""
    drift: float | None
    """How much slower the machine is than when it was profiled; None if nothing is known."""


def predict(
    world: ReplayWorld, recorded: Sequence[int | None], texts: Mapping[str, Sequence[DecodedText]], probe: Sequence[DecodedText]
) -> Prediction:
    """Predict the decoding time of every text under every policy from the arms that were chosen.

    Args:
        world: Traces, latencies and arms.
        recorded: Number of each text in the recording; None if it was not recorded.
        texts: What was decoded, by policy.
        probe: The same texts as :class:`Probe` decoded them.
    """
    replayed = {name: [_replayed(world, *pair) for pair in zip(recorded, decoded, strict=True)] for name, decoded in texts.items()}
    pairs = [(text, there) for number, text in zip(recorded, probe, strict=True) if (there := _replayed(world, number, text))]
    if not pairs:
        return Prediction({name: np.full(len(decoded), np.nan) for name, decoded in texts.items()}, None)
    measured = np.sum([_parts(world, text.rounds) for text, _ in pairs], axis=0)
    predicted = np.sum([_parts(world, there) for _, there in pairs], axis=0)
    factors = _factors(measured, predicted)
    between = (text.decoding_ms - text.decision_ms - sum(record.latency_ms for record in text.rounds) for text, _ in pairs)
    between_ms = sum(between) / float(measured[0].sum())

    def decoding_ms(text: DecodedText, there: Sequence[Round] | None) -> float:
        if there is None:
            return float("nan")
        return float((factors * _parts(world, there)[1:]).sum()) + text.decision_ms + between_ms * len(there)

    latency_ms = {name: np.array(list(map(decoding_ms, decoded, replayed[name]))) for name, decoded in texts.items()}
    return Prediction(latency_ms, float(measured[1:].sum() / predicted[1:].sum() - 1))


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
