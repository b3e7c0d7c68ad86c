"""Decoding a whole text with a policy: the loop that is timed is the loop that is deployed."""

import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from time import perf_counter

from dispatch_rl.decoding.arms import NONE, Arm, ArmTable
from dispatch_rl.decoding.families import Family
from dispatch_rl.decoding.graphs import capture_graphs
from dispatch_rl.decoding.rounds import Round
from dispatch_rl.decoding.sampling import Sampling
from dispatch_rl.decoding.session import DecodingSession
from dispatch_rl.errors import first_line
from dispatch_rl.policies.base import Policy

_WARM_UP_PROMPT = tuple(range(16))
_WARM_UP_TOKENS = 24
_SAFE = Arm(NONE)
"""What is left when the dispatcher fails."""


@dataclass(frozen=True)
class DecodedText:
    """A text and what it took."""

    tokens: tuple[int, ...]
    """Emitted tokens."""
    rounds: tuple[Round, ...]
    """All rounds; the first token comes from the prefill and belongs to none."""
    prefill_ms: float
    """Time to the first token."""
    decoding_ms: float
    """Wall-clock time of all rounds, the policy's decisions included."""
    decision_ms: float
    """The part of it that features and policy took."""
    entropies_at_decision: tuple[float, ...]
    """The entropy (nats) that the policy saw before each round; NaN once it has failed."""


class DispatchWarning(UserWarning):
    """The dispatcher failed; the target writes the rest of the text alone."""


class Dispatch:
    """Does the rounds of a session, a policy choosing the arms.

    Whatever a policy or a student does, the text is the target's. If one of them raises, runs out of memory or gives what is not a
    number or not an arm, the target writes the rest of the text alone, after one :class:`DispatchWarning`. What the target raises is
    raised.

    Args:
        session: The text.
        policy: Asked before every round.
        arms: What it chooses from.
    """

    def __init__(self, session: DecodingSession, policy: Policy, arms: ArmTable) -> None:
        self.session = session
        self.policy = policy
        self.arms = arms
        self.failure: str | None = None
        """What went wrong in the dispatcher."""
        self.decision_ms = 0.0
        """Time that features and policy took."""
        self.entropies_nats: list[float] = []
        """The entropy that the policy saw before each round; NaN once it has failed."""
        try:
            policy.reset()
        except Exception as error:
            self._give_up(error)

    def step(self) -> Round:
        """Do the next round and return its record."""
        asked = perf_counter()
        action = self._choose() if self.failure is None else None
        self.decision_ms += 1000 * (perf_counter() - asked)
        if action is None:
            self.entropies_nats.append(math.nan)
            return self.session.step(_SAFE)
        record = self.session.step(self.arms[action], on_failure=self._give_up)
        if self.policy.learns and self.failure is None:
            asked = perf_counter()
            try:
                self.policy.update(action, len(record.emitted), record.latency_ms)
            except Exception as error:
                self._give_up(error)
            self.decision_ms += 1000 * (perf_counter() - asked)
        return record

    def _choose(self) -> int | None:
        """Return what the policy chooses, None if that is no arm."""
        try:
            observation = self.session.observation()
            action = self.policy(observation)
            if not 0 <= action < len(self.arms):
                raise IndexError(f"the policy chose arm {action} of {len(self.arms)}")
            self.arms[action]
        except Exception as error:
            self._give_up(error)
            return None
        self.entropies_nats.append(float(observation[0]))
        return action

    def _give_up(self, error: Exception) -> None:
        self.failure = f"{type(error).__name__}: {first_line(error)}"
        message = f"the dispatcher failed ({self.failure}); the target writes the rest of the text alone"
        warnings.warn(message, DispatchWarning, stacklevel=2)


def decode(family: Family, policy: Policy, arms: ArmTable, prompt: Sequence[int], sampling: Sampling, max_new_tokens: int) -> DecodedText:
    """Continue ``prompt`` to its end; ``policy`` chooses an arm before every round."""
    session = DecodingSession(family, prompt, sampling, max_new_tokens)
    dispatch = Dispatch(session, policy, arms)
    family.synchronise()
    began = perf_counter()
    while not session.finished:
        dispatch.step()
    total = perf_counter() - began
    return DecodedText(
        tokens=tuple(session.text_tokens),
        rounds=tuple(session.rounds),
        prefill_ms=session.prefill_ms,
        decoding_ms=1000 * total,
        decision_ms=dispatch.decision_ms,
        entropies_at_decision=tuple(dispatch.entropies_nats),
    )


def warm_up(family: Family, arms: ArmTable, samplings: Iterable[Sampling] = ()) -> None:
    """Capture what the family captures and decode a little with every arm, so that the first measured text pays for no first call.

    Args:
        family: The models.
        arms: The arms that will be used.
        samplings: How tokens will be chosen, if that is known.
    """
    capture_graphs(family, arms, samplings)
    endless = replace(family, eos_token_ids=frozenset())
    for arm in arms:
        session = DecodingSession(endless, _WARM_UP_PROMPT, Sampling(temperature=1.0), _WARM_UP_TOKENS)
        while not session.finished:
            session.step(arm)


def target_latency_ms(family: Family) -> float:
    """Return the latency of the target alone (ms per token): the median round of a short text."""
    warm_up(family, ArmTable([Arm(NONE)]))
    endless = replace(family, eos_token_ids=frozenset())
    session = DecodingSession(endless, _WARM_UP_PROMPT, Sampling(temperature=1.0, seed=1), 4 * _WARM_UP_TOKENS)
    while not session.finished:
        session.step(Arm(NONE))
    return median(record.latency_ms for record in session.rounds)
