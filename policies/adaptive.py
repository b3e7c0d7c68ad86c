"""A learned policy that is watched while it decodes, and replaced, for as long as that pays, by a fixed arm.

A learned policy is good for text like that it was trained on. For other text, some fixed arm may be far better. Which one, only decoding
itself can tell, and only of the *expert* that is asked: the learned policy or one of a few fixed arms. So this is a bandit over experts:

* One of them is the *leader*. Others are tried for a stretch of tokens, between stretches of the leader, because a change of student costs
  a catch-up, and they are compared with the leader in that very place of that very text (:mod:`dispatch_rl.policies.evidence`).
* Somebody else becomes the leader where the *pessimistic* estimate ``d + pessimism s`` of the time that it takes more is negative: nobody
  takes over by luck alone. For the learned policy it is ``d``, as there were reasons to choose it.
* Trials have a budget, as in Wu et al., "Conservative bandits" (2016): none begins once all of them together have taken longer, than the
  leader would have for the same tokens, by more than ``share`` of all time so far and of a credit of ``credit`` tokens.
* Tried is the one with the least *optimistic* estimate ``d - optimism s``, if that is negative, and until it no longer is. Who was never
  tried comes first. As UCB1's logarithm does (Auer et al., "Finite-time analysis of the multiarmed bandit problem", 2002), optimism sees
  to it that who was unlucky once is tried again; it grows with what is left of the budget. Trials begin now and then, but behind every
  stretch of the leader's while somebody looks better or is unknown. The learned policy is tried again in any case, in the end.
* The conditions of the evidence are places on the scale of the target's entropy.

Nothing of this can change a text.
"""

import math
from collections.abc import Sequence

import numpy as np

from dispatch_rl.policies.base import Observation, Policy
from dispatch_rl.policies.evidence import Estimate, Evidence, Stretch

_LEAST_NATS = 0.05
"""Entropies below this are hardly told apart."""
_PLACES = (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0)
"""Where evidence is kept: logarithms of the entropy (nats), 0.05 to 7.4 in steps of a factor e."""
_FOLLOW = 0.1
"""Weight of a round in the moving average of the logarithm; that of a text's first rounds is larger."""
_ENOUGH = 3
"""Rounds that tell anything about an expert; what the end of a text cuts off before is forgotten."""
_OFTEN = 4
"""Rounds after which it is looked again who leads."""
_LONG = 12
"""Rounds that are enough of an expert who emits few tokens in each."""
_AGAIN = 500
"""Tokens after which the learned policy is tried again, whatever it was like: nothing may tell that conditions are what they were."""
_PIECE_TOKENS = 512
"""A text so long is another text from there on."""


class AdaptivePolicy(Policy):
    """Asks a learned policy or a fixed arm, whichever has been faster in conditions like these.

    It keeps what it has seen from text to text; equal texts in equal order with an equal seed give equal choices.

    Args:
        learned: The first expert, who leads while nothing is known.
        actions: The others, each always the same arm, in the order in which they are tried.
        entropy_index: Where the moving average of the target's entropy stands in the observation; None means one place for everything.
        share: What trials may cost, as a share of the time.
        credit: Tokens whose time is counted as spent before the first, so that trials can begin with the first text.
        stretch: Tokens for which an expert is asked on end, about.
        rate: Chance per token that a trial follows; it is higher in the first few texts.
        pessimism: Standard errors that the estimates of arms are raised by.
        optimism: Standard errors that estimates are lowered by, when somebody is to be tried: once the budget is spent, and before.
        deviation: Relative standard deviation of a piece of evidence before there are any.
        window: Pieces of newer evidence about a pair that an older one outlives, about.
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
        stretch: int = 24,
        rate: float = 0.03,
        pessimism: float = 1.0,
        optimism: tuple[float, float] = (0.5, 1.1),
        deviation: float = 0.45,
        window: float = 12.0,
        half_life: float = 20_000.0,
        seed: int = 0,
    ) -> None:
        self.learned = learned
        self.actions = tuple(actions)
        self.entropy_index = entropy_index
        self.share, self.credit, self.seed = share, credit, seed
        self.trial_ms = 0.0
        """What trials have cost so far: their time less the leader's for as many tokens."""
        self._stretch, self._rate = stretch, rate
        self._pessimism, self._optimism, self._hope = pessimism, optimism, optimism[1]
        self._rng = np.random.default_rng(seed)
        places = _PLACES if entropy_index is not None else (0.0,)
        self._evidence = Evidence(1 + len(self.actions), places, deviation, window, half_life)
        self._total_ms, self._rounds = 0.0, 0
        self._where = 0.0
        self._rounds_of_text = 0
        self._leader, self._leader_ms = 0, math.inf
        self._now, self._rounds_now = Stretch(0, 0.0, 0.0), 0
        self._past: list[Stretch] = []
        """The last two stretches of this text."""
        self._last: tuple[int, float] | None = None
        self._without_learned = 0
        """Tokens since the learned policy was asked."""

    @property
    def expert(self) -> int:
        """Who is asked now: 0 for the learned policy, ``i + 1`` for ``actions[i]``."""
        return self._now.expert

    def reset(self) -> None:
        # The last round of a text was cut off by its end. It says little, and would tell against whoever was asked late.
        self._last = None
        if self._rounds_now >= _ENOUGH:
            self._close()
        self._judge()
        self._evidence.file()
        self._past = []
        self._rounds_of_text = 0
        self._ask(self._leader)
        self.learned.reset()

    def __call__(self, observation: Observation) -> int:
        if self.entropy_index is not None:
            here = math.log(_LEAST_NATS + float(observation[self.entropy_index]))
            if not math.isfinite(here):
                raise ValueError("the entropy is not a number")
            # What the last text was like says more than the first token of the next.
            weight = max(_FOLLOW, 1 / (self._rounds_of_text + 1)) if self._rounds_of_text else _FOLLOW if self._rounds else 1.0
            self._where += weight * (here - self._where)
        if self._rounds_of_text == 0:
            self._leader = self._best()
            self._ask(self._leader)
        self._rounds_of_text += 1
        self._learn()
        return self.learned(observation) if self.expert == 0 else self.actions[self.expert - 1]

    def update(self, action: int, emitted: int, latency_ms: float) -> None:
        if not (emitted > 0 and 0 <= latency_ms < math.inf):
            raise ValueError(f"a round of {emitted} tokens in {latency_ms} ms")
        self._last = emitted, latency_ms
        self._total_ms += latency_ms
        self._rounds += 1

    def estimates(self) -> list[Estimate]:
        """Return how much longer than the leader's a token of every expert takes in the conditions of now ``[experts]``."""
        return self._evidence.against(self._leader, self._where)

    @property
    def _on_trial(self) -> bool:
        return self.expert != self._leader

    def _learn(self) -> None:
        """Take in the last round, and change the expert where it is time to."""
        if self._last is None:
            return
        tokens, ms = self._last
        self._last = None
        self._now = Stretch(self.expert, self._now.tokens + tokens, self._now.ms + ms)
        self._without_learned = self._without_learned + tokens if self.expert else 0
        self._rounds_now += 1
        if self._on_trial:
            self.trial_ms += ms - self._leader_ms * tokens
        if self._rounds_now < _ENOUGH:
            return
        if self._now.tokens >= self._stretch or self._rounds_now >= _LONG or (self._on_trial and not self._promising()):
            self._close()
            self._leader = self._best()
            self._ask(self._next())
        elif not self._on_trial and self._rounds_now % _OFTEN == 0 and (best := self._best()) != self._leader:
            self._close()
            self._leader = best
            self._ask(best)

    def _promising(self) -> bool:
        """Return whether the expert on trial may still be better than the leader."""
        difference, error = self._evidence.with_another(self._now, self._past[-1], self._where)
        return difference <= self._hope * error

    def _ask(self, expert: int) -> None:
        self._now, self._rounds_now = Stretch(expert, 0.0, 0.0), 0

    def _close(self) -> None:
        """End the stretch, which judges the one before it."""
        self._evidence.add(self._now, self._where)
        self._judge(self._now)
        self._past = [*self._past[-1:], self._now]
        if self._evidence.text_tokens >= _PIECE_TOKENS and not self._on_trial:
            self._evidence.file()

    def _judge(self, behind: Stretch | None = None) -> None:
        """Compare the last stretch, if it was a trial, with the leader's around it."""
        if not self._past or self._past[-1].expert == self._leader:
            return
        around = [stretch for stretch in (*self._past[:-1], behind) if stretch is not None and stretch.expert == self._leader]
        if around:
            both = Stretch(self._leader, sum(stretch.tokens for stretch in around), sum(stretch.ms for stretch in around))
            self._evidence.compare(self._past[-1], both)

    def _best(self) -> int:
        """Return who is to lead in the conditions of now."""
        estimates = self.estimates()
        pessimistic = [difference + self._pessimism * error for difference, error in estimates]
        if estimates[0].error < math.inf:
            pessimistic[0] = estimates[0].difference
        return pessimistic.index(min(pessimistic))

    def _next(self) -> int:
        """Return who is to be asked now, behind a stretch: the leader, or somebody on trial."""
        before = self._past[-1]
        budget_ms = self.share * (self._total_ms + self.credit * self._evidence.level_ms(self._where))
        if before.expert != self._leader or self.trial_ms >= budget_ms:
            return self._leader
        least, most = self._optimism
        self._hope = least + (most - least) * min(1 - self.trial_ms / budget_ms, 1)
        estimates = self.estimates()
        optimistic = [difference - self._hope * error for difference, error in estimates]
        optimistic[self._leader] = math.inf
        tried = optimistic.index(min(optimistic))
        if optimistic[tried] >= 0:
            if not self._leader or self._without_learned < _AGAIN:
                return self._leader
            tried = 0
        elif math.isfinite(estimates[tried].error) and estimates[tried].difference >= 0:
            chance = max(1 - math.exp(-before.tokens * self._rate), 1 / (1 + self._rounds / 16))
            if self._rng.random() >= chance:
                return self._leader
        self._leader_ms = before.ms / before.tokens
        return tried
