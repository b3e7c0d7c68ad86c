"""A learned policy that is watched while it decodes, and replaced, for as long as that pays, by a fixed arm.

A learned policy is good for text like that it was trained on. For other text, some fixed arm may be far better. Which one, only decoding
itself can tell, and only of the *expert* that is asked: the learned policy or one of a few fixed arms. So this is a bandit over experts:

* Experts are asked for several rounds on end, because a change of student costs a catch-up. The tokens and the time of all these rounds
  of one text are one piece of evidence. What counts is the ratio of sums ``r = time / tokens``, whose standard error is

      s^2 = V (sum tokens^2) / (sum tokens)^2,    V: variance of a piece's ratio around r, weighted by tokens^2,

  with a prior for ``V``, as few pieces may look alike by chance.
* Usually the expert with the least *pessimistic* estimate ``r + pessimism s`` is asked, the *leader*: nobody takes over by luck alone.
  For the learned policy it is ``r``, as there were reasons to choose it.
* At times the one with the least *optimistic* estimate ``r - optimism s`` is tried, if that is below the leader's ``r``, and until it
  no longer is. Who was never tried has no lower bound (after UCB1: Auer et al., "Finite-time analysis of the multiarmed bandit problem",
  2002, without its logarithm, whose repeated trials cost more here than a good arm that was unlucky once).
* Trials have a budget, as in Wu et al., "Conservative bandits" (2016): none begins once all of them together have taken longer, than the
  leader would have for the same tokens, by more than ``share`` of all time so far and of a credit of ``credit`` tokens.
* Evidence is kept by *conditions*: places on the scale of the target's entropy, between which evidence is shared out. What was learned
  about one sort of text is still there when that sort comes back. In one place, old evidence is forgotten (Garivier & Moulines, "On
  upper-confidence bound policies for switching bandit problems", 2011): half of it after so many tokens there, and an expert's own
  as newer comes in.

Nothing of this can change a text.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dispatch_rl.policies.base import Observation, Policy

Floats = NDArray[np.float64]

_LEAST_NATS = 0.05
"""Entropies below this are hardly told apart."""
_PLACES: Floats = np.arange(-3.0, 3.0)
"""Where evidence is kept: logarithms of the entropy (nats), 0.05 to 7.4 in steps of a factor e."""
_FOLLOW = 0.1
"""Weight of a round in the moving average of the logarithm; that of a text's first rounds is larger."""
_ENOUGH = 3
"""Rounds that tell anything about an expert; what the end of a text cuts off before is forgotten."""
_PIECE_TOKENS = 100
"""An expert's own evidence is forgotten by pieces of so many tokens."""


class AdaptivePolicy(Policy):
    """Asks a learned policy or a fixed arm, whichever has been faster in conditions like these.

    It keeps what it has seen from text to text; equal texts in equal order with an equal seed give equal choices.

    Args:
        learned: The first expert, asked while nothing is known.
        actions: The others, each always the same arm, in the order in which they are tried.
        entropy_index: Where the moving average of the target's entropy stands in the observation; None means one place for everything.
        share: What trials may cost, as a share of the time.
        credit: Tokens whose time is counted as spent before the first, so that trials can begin with the first text.
        stretch: Rounds for which an expert is asked on end.
        trial: Rounds of a trial at most.
        rate: Chance that a trial begins where a stretch ends; it is higher in the first few texts.
        pessimism: Standard errors that the estimates of arms are raised by.
        optimism: Standard errors that estimates are lowered by, when somebody is to be tried.
        deviation: Relative standard deviation of a piece before there are any, worth two pieces.
        window: Pieces of an expert's own newer evidence that an older one outlives, about.
        half_life: Tokens in one place after which all evidence there counts half.
        seed: When trials begin.
    """

    learns = True

    def __init__(
        self,
        learned: Policy,
        actions: Sequence[int],
        entropy_index: int | None,
        *,
        share: float = 0.02,
        credit: float = 2_000.0,
        stretch: int = 4,
        trial: int = 16,
        rate: float = 0.15,
        pessimism: float = 1.0,
        optimism: float = 1.0,
        deviation: float = 0.35,
        window: float = 40.0,
        half_life: float = 20_000.0,
        seed: int = 0,
    ) -> None:
        self.learned = learned
        self.actions = tuple(actions)
        self.entropy_index = entropy_index
        self.share, self.credit, self.seed = share, credit, seed
        self.trial_ms = 0.0
        """What trials have cost so far: their time less the leader's for as many tokens."""
        self._stretch, self._trial, self._rate = stretch, trial, rate
        self._pessimism, self._optimism, self._deviation = pessimism, optimism, deviation
        self._window, self._half_life = window, half_life
        self._rng = np.random.default_rng(seed)
        self._places = _PLACES if entropy_index is not None else np.zeros(1)
        self._evidence: Floats = np.zeros((len(self._places), 6, 1 + len(self.actions)))
        """Sums of 1, e, t, e^2, e t and t^2 over the pieces of each expert, e its tokens and t its time ``[places, 6, experts]``."""
        self._total_ms, self._rounds = 0.0, 0
        self._where = 0.0
        self._rounds_of_text = 0
        self._expert, self._left = 0, 0
        self._piece = [0.0, 0.0]
        self._piece_rounds = 0
        self._last: tuple[int, float] | None = None
        self._on_trial = False
        self._tried: set[int] = set()
        self._leader_ms = math.inf

    @property
    def expert(self) -> int:
        """Who is asked now: 0 for the learned policy, ``i + 1`` for ``actions[i]``."""
        return self._expert

    def reset(self) -> None:
        # The last round of a text was cut off by its end. It says little, and would tell against whoever was asked late.
        self._last = None
        self._file()
        self._rounds_of_text, self._left = 0, 0
        self._tried = set()
        self.learned.reset()

    def __call__(self, observation: Observation) -> int:
        if self.entropy_index is not None:
            here = math.log(_LEAST_NATS + float(observation[self.entropy_index]))
            if not math.isfinite(here):
                raise ValueError("the entropy is not a number")
            # What the last text was like says more than the first token of the next.
            weight = max(_FOLLOW, 1 / (self._rounds_of_text + 1)) if self._rounds_of_text else _FOLLOW if self._rounds else 1.0
            self._where += weight * (here - self._where)
        self._rounds_of_text += 1
        self._learn()
        if self._left <= 0:
            self._decide()
        return self.learned(observation) if self._expert == 0 else self.actions[self._expert - 1]

    def update(self, action: int, emitted: int, latency_ms: float) -> None:
        if not (emitted > 0 and 0 <= latency_ms < math.inf):
            raise ValueError(f"a round of {emitted} tokens in {latency_ms} ms")
        self._last = emitted, latency_ms
        self._total_ms += latency_ms
        self._rounds += 1
        self._left -= 1
        if self.learned.learns and self._expert == 0:
            self.learned.update(action, emitted, latency_ms)

    def estimates(self) -> tuple[Floats, Floats]:
        """Return every expert's time per token (ms) in the conditions of now, and its standard error ``[experts]``; infinite if unknown."""
        nearness = self._nearness()
        everywhere = self._evidence.sum(axis=0)
        # What was seen elsewhere counts as a third of a piece.
        sums = np.tensordot(nearness, self._evidence, 1) + 0.3 * everywhere / np.maximum(everywhere[0], 0.3)
        tokens, time = self._piece
        if tokens:
            sums[:, self._expert] += _moments(tokens, time)
        known = sums[0] > 1e-6
        n, e, t, ee, et, tt = np.where(known, sums, 1.0)
        ratio = t / e
        around = np.maximum(tt - 2 * ratio * et + ratio**2 * ee, 0.0) / ee * n
        variance = (around + 2 * (self._deviation * ratio) ** 2) / (n + 2)
        error = np.sqrt(variance * ee) / e
        return np.where(known, ratio, np.inf), np.where(known, error, 0.0)

    def _nearness(self) -> Floats:
        nearness: Floats = np.exp(-0.5 * (self._places - self._where) ** 2)
        nearness /= nearness.max()
        return nearness

    def _learn(self) -> None:
        """Take in the last round, and end a trial that promises nothing any more."""
        if self._last is None:
            return
        tokens, time = self._last
        self._piece[0] += tokens
        self._piece[1] += time
        self._piece_rounds += 1
        self._last = None
        if self._on_trial:
            self.trial_ms += time - self._leader_ms * tokens
            if 0 < self._left <= self._trial - _ENOUGH and self._optimistic(*self.estimates())[self._expert] > self._leader_ms:
                self._left = 0

    def _optimistic(self, ratio: Floats, error: Floats) -> Floats:
        """Return how fast every expert may be, as far as is known ``[experts]``."""
        return np.where(np.isinf(ratio), -np.inf, ratio - self._optimism * error)

    def _decide(self) -> None:
        """Choose the expert of the next rounds."""
        ratio, error = self.estimates()
        pessimistic = ratio + self._pessimism * error
        pessimistic[0] = ratio[0]
        leader = int(pessimistic.argmin())
        self._leader_ms = float(ratio[leader])
        tried = self._candidate(leader, self._optimistic(ratio, error)) if math.isfinite(self._leader_ms) else None
        chosen = leader if tried is None else tried
        if chosen != self._expert:
            self._file()
        self._expert, self._on_trial = chosen, tried is not None
        self._left = self._stretch if tried is None else self._trial

    def _candidate(self, leader: int, optimistic: Floats) -> int | None:
        """Return whom to try now, None for nobody."""
        if self.trial_ms >= self.share * (self._total_ms + self.credit * self._leader_ms):
            return None
        # In new conditions nobody knows yet what a trial costs: the leader goes first.
        if not (self._piece[0] and self._expert == leader) and self._nearness() @ self._evidence[:, 0, leader] < 1:
            return None
        if self._rng.random() >= max(self._rate, 1 / (1 + self._rounds / 16)):
            return None
        # The first that is unknown, else the one that may be best; once in a text.
        optimistic[[leader, *self._tried]] = np.inf
        best = int(optimistic.argmin())
        if optimistic[best] >= self._leader_ms:
            return None
        self._tried.add(best)
        return best

    def _file(self) -> None:
        """Put the piece of evidence that has been gathered where it belongs."""
        (tokens, time), rounds = self._piece, self._piece_rounds
        self._piece, self._piece_rounds = [0.0, 0.0], 0
        if rounds < _ENOUGH:
            return
        part = np.ones(1)
        if self.entropy_index is not None:
            place = min(max(self._where, self._places[0]), self._places[-1])
            part = np.maximum(0.0, 1 - np.abs(self._places - place))
        self._evidence *= (0.5 ** (part * tokens / self._half_life))[:, None, None]
        mine = self._evidence[:, :, self._expert]
        mine *= np.maximum(1 - part * min(tokens / _PIECE_TOKENS, 1) / self._window, 0.0)[:, None]
        mine += part[:, None] * _moments(tokens, time)


def _moments(tokens: float, time: float) -> Floats:
    return np.array([1.0, tokens, time, tokens * tokens, tokens * time, time * time])
