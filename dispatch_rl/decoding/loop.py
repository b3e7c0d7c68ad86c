"""Decoding a whole text with a policy: the loop that is timed is the loop that is deployed."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median
from time import perf_counter

from dispatch_rl.decoding.arms import NONE, Arm, ArmTable
from dispatch_rl.decoding.families import Family
from dispatch_rl.decoding.rounds import Round
from dispatch_rl.decoding.sampling import Sampling
from dispatch_rl.decoding.session import DecodingSession
from dispatch_rl.policies.base import Policy

_WARM_UP_PROMPT = tuple(range(16))
_WARM_UP_TOKENS = 24


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
    """The entropy (nats) that the policy saw before each round."""


def decode(family: Family, policy: Policy, arms: ArmTable, prompt: Sequence[int], sampling: Sampling, max_new_tokens: int) -> DecodedText:
    """Continue ``prompt`` to its end; ``policy`` chooses an arm before every round."""
    session = DecodingSession(family, prompt, sampling, max_new_tokens)
    policy.reset()
    decision, entropies = 0.0, []
    family.synchronise()
    began = perf_counter()
    while not session.finished:
        asked = perf_counter()
        observation = session.observation()
        action = policy(observation)
        decision += perf_counter() - asked
        entropies.append(float(observation[0]))
        record = session.step(arms[action])
        if policy.learns:
            asked = perf_counter()
            policy.update(action, len(record.emitted), record.latency_ms)
            decision += perf_counter() - asked
    total = perf_counter() - began
    return DecodedText(
        tokens=tuple(session.text_tokens),
        rounds=tuple(session.rounds),
        prefill_ms=session.prefill_ms,
        decoding_ms=1000 * total,
        decision_ms=1000 * decision,
        entropies_at_decision=tuple(entropies),
    )


def warm_up(family: Family, arms: ArmTable) -> None:
    """Decode a little with every arm, so that the first measured text pays for no first call."""
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
