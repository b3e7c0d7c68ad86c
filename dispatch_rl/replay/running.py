"""Policies on replay: whole texts, all rounds, exact."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dispatch_rl.decoding.features import position_index
from dispatch_rl.decoding.rounds import Round, RoundTable
from dispatch_rl.errors import UserError
from dispatch_rl.policies.base import Policy
from dispatch_rl.policies.fixed import FixedPolicy
from dispatch_rl.replay.episodes import Episodes, Step
from dispatch_rl.replay.world import Floats, Ints, ReplayWorld


@dataclass(frozen=True)
class Replayed:
    """What a policy did with some texts."""

    rounds: RoundTable
    """All rounds; a text's number is its place among the texts that were asked for."""
    latency_ms: Floats
    """Decoding time of each text ``[texts]``."""
    tokens: Ints
    """Tokens that the rounds of each text emitted ``[texts]``."""

    @property
    def latency_ms_per_token(self) -> float:
        """Decoding time / tokens emitted by rounds."""
        return float(self.latency_ms.sum() / self.tokens.sum())


class _Log:
    """Collects rounds step by step."""

    def __init__(self, world: ReplayWorld) -> None:
        self._world = world
        self._names = np.array([arm.name for arm in world.arms])
        self._columns: list[tuple[np.ndarray, ...]] = []

    def add(self, texts: Ints, actions: Ints, positions: Ints, step: Step, entropies: Floats) -> None:
        columns = (texts, actions, positions, step.num_draft_tokens, step.num_accepted_tokens, step.emitted, step.latency_ms, entropies)
        self._columns.append(tuple(column.copy() for column in columns))

    def result(self, texts: Ints) -> Replayed:
        text, action, *rest = (np.concatenate(parts) for parts in zip(*self._columns, strict=True))
        rounds = RoundTable(text, self._names[action], *rest)
        traces = self._world.traces
        latency_ms = np.bincount(rounds.text, rounds.latency_ms, minlength=len(texts)).astype(np.float64)
        return Replayed(rounds, latency_ms, traces.lengths[texts] - traces.first_position)


def replay(world: ReplayWorld, policy: Policy, texts: Ints | None = None) -> Replayed:
    """Decode ``texts`` with ``policy``; None means all texts of the world. A learning policy decodes them one after the other."""
    texts = world.texts if texts is None else texts
    groups = [np.array([i]) for i in range(len(texts))] if policy.learns else [np.arange(len(texts))]
    log = _Log(world)
    entropy = _entropy_column(world)
    for group in groups:
        policy.reset()
        episodes = Episodes(world, len(group), policy.looks)
        episodes.restart(np.arange(len(group)), texts[group])
        while len(group):
            observations = episodes.observations()
            actions = np.array([policy(observations[0])]) if policy.learns else policy.batch(observations)
            before = np.full(len(group), np.nan) if entropy is None else observations[:, entropy].astype(np.float64)
            positions = episodes.emitted
            step = episodes.step(actions)
            log.add(group, actions, positions, step, before)
            if policy.learns:
                policy.update(int(actions[0]), int(step.emitted[0]), float(step.latency_ms[0]))
            if step.finished.any():
                episodes.keep(~step.finished)
                group = group[~step.finished]
    return log.result(texts)


def fixed_latencies_ms(world: ReplayWorld) -> Floats:
    """Return the latency of every text under every fixed arm ``[arms, texts]``."""
    return np.stack([replay(world, FixedPolicy(action)).latency_ms for action in range(len(world.arms))])


def best_fixed_latency_ms(world: ReplayWorld) -> float:
    """Return the latency (ms per token) of the arm that is fastest on these texts if it is always chosen."""
    tokens = world.traces.lengths[world.texts] - world.traces.first_position
    return float(fixed_latencies_ms(world).sum(axis=1).min() / tokens.sum())


def predicted_rounds(world: ReplayWorld, text: int, actions: Sequence[int]) -> list[Round]:
    """Return the rounds in which ``text`` is decoded by this sequence of arms, chosen without looking.

    Raises:
        ValueError: The sequence does not end where the text does.
    """
    episodes = Episodes(world, 1, reads_along=False)
    episodes.restart(np.array([0]), np.array([text]))
    rounds, finished = [], False
    for action in actions:
        if finished:
            break
        rounds.append(episodes.record(0, action))
        finished = bool(episodes.step(np.array([action])).finished[0])
    if not finished or len(rounds) < len(actions):
        raise ValueError("the sequence of arms does not end where the text does")
    return rounds


def _entropy_column(world: ReplayWorld) -> int | None:
    try:
        return position_index(world.features, "entropy")
    except UserError:
        return None
