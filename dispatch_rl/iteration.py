"""Policy iteration on replay: every arm is tried from every sampled state, and its consequences are followed, if need be to the end.

A recording holds the outcome of *every* arm, so the value of an arm under the current policy need not be estimated from samples of what
the policy happened to do. From a state ``s`` all arms ``a`` are taken, each followed by the policy until its text ends, which gives

    Q(s, a) = latency of the round + latency of all rounds behind it,

exact for this text and this policy. A text that goes on beyond a horizon is left there; the few tokens that an arm has then emitted more
than another count as much as one took on average. The new policy minimises the mean over states of

    sum over a of p(a | s) A(s, a) - beta H(p(. | s)),    A(s, a) = (Q(s, a) - mean over a of Q(s, a)) / sigma,

with the entropy ``H`` and one ``sigma`` for all states. States are those that the policy meets when it explores: it samples its arms,
and now and then stays with a random one for some rounds, since a student that was long behind pays for its catch-up once and is worth it
only if it is kept. (Rollout classification policy iteration, Lagoudakis and Parr 2003, with costs in place of the best action's label.)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dispatch_rl import layers
from dispatch_rl.config import PolicyIterationConfig
from dispatch_rl.policies.network import NetworkPolicy
from dispatch_rl.replay.episodes import Episodes, Observations, joined
from dispatch_rl.replay.world import Floats, Ints, ReplayWorld

_SIDE_BY_SIDE = 1 << 17
"""Episodes that are followed at once."""
_TOKENS_PER_ROUND = 3
"""About so many; the number of states follows from it."""
_NEVER = -1e9
"""Logit of what is not taken."""


@dataclass(frozen=True)
class Lesson:
    """States and what every arm costs from there."""

    observations: Observations
    """``[states, features]``."""
    advantages: NDArray[np.float32]
    """``Q(s, a)`` less its mean over the actions that are taken (ms) ``[states, actions]``."""


class PolicyIteration:
    """Improves a policy on a replay world, one iteration at a time. What an iteration does depends on the seed and its number alone.

    Args:
        world: What is replayed.
        config: Sizes and rates.
        seed: Of states, exploration and weights.
        initial: The policy to begin with; None begins with one that has no preference.
        among: Actions that are taken until :meth:`open`; None means all.
    """

    def __init__(
        self,
        world: ReplayWorld,
        config: PolicyIterationConfig,
        seed: int,
        initial: NetworkPolicy | None = None,
        among: Sequence[int] | None = None,
    ) -> None:
        self.world = world
        self.config = config
        self.seed = seed
        self.actions: Ints = np.array(range(len(world.arms)) if among is None else among)
        """Those that are taken."""
        self.iteration = 0
        """Iterations that are done."""
        self.lessons: list[Lesson] = []
        self.scale = np.array([feature.scale for feature in world.features], dtype=np.float32)
        generator = torch.Generator().manual_seed(seed)
        self.network = _network((self._width(), *config.net_arch, len(world.arms)), generator)
        if initial is not None:
            layers.write(layers.linears(self.network), initial)

    def policy(self) -> NetworkPolicy:
        """Return the policy as it is."""
        return NetworkPolicy(self.scale.copy(), *self._read())

    def open(self) -> None:
        """Let every action be taken from now on; what was not yet begins as the average of what was."""
        others = self._others()
        if not len(others):
            return
        last = layers.linears(self.network)[-1]
        with torch.no_grad():
            for rows in (last.weight, last.bias):
                rows[others] = rows[self.actions].mean(dim=0)
        # What was learned says nothing of the others.
        self.actions, self.lessons = np.arange(len(self.world.arms)), []

    def step(self) -> Lesson:
        """Do one iteration and return what was learned from in it."""
        rng = np.random.default_rng([self.seed, self.iteration])
        lesson = self._lesson(rng)
        self.lessons = [*self.lessons, lesson][-self.config.keep :]
        self._fit(torch.Generator().manual_seed(int(rng.integers(2**62))))
        self.iteration += 1
        return lesson

    def action_entropy(self) -> float:
        """Return the mean entropy (nats) of the action distribution over the last states; near zero means it has collapsed."""
        with torch.no_grad():
            log_p = self._log_p(self._inputs(self.lessons[-1].observations))
        return float(-(log_p.exp() * log_p).sum(-1).mean())

    def _lesson(self, rng: np.random.Generator) -> Lesson:
        policy = self.policy()
        states = self._explore(policy, rng)
        rows, arms = np.arange(states.count), len(self.actions)
        costs = [self._costs(states.branched(some), policy) for some in np.array_split(rows, -(-states.count * arms // _SIDE_BY_SIDE))]
        found = np.concatenate(costs)
        return Lesson(states.observations(), (found - found.mean(axis=1, keepdims=True)).astype(np.float32))

    def _explore(self, policy: NetworkPolicy, rng: np.random.Generator) -> Episodes:
        """Decode texts with a policy that explores and return about ``config.states`` states, any round's as likely as another's."""
        world = self.world
        rounds = world.traces.lengths[world.texts].sum() / _TOKENS_PER_ROUND
        passes = int(np.ceil(self.config.states / rounds))
        found: list[Episodes] = []
        for _ in range(passes):
            episodes = Episodes(world, len(world.texts))
            kept = np.full(episodes.count, -1)
            while episodes.count:
                taken = np.flatnonzero(rng.random(episodes.count) < self.config.states / (rounds * passes))
                found.append(episodes.branched(taken))
                actions, kept = self._exploring(policy.batch_logits(episodes.observations()), kept, rng)
                going = ~episodes.step(actions).finished
                episodes.keep(going)
                kept = kept[going]
        # So few states may have been asked for that chance took none.
        return joined(found) if any(part.count for part in found) else Episodes(world, 1)

    def _exploring(self, logits: NDArray[np.float32], kept: Ints, rng: np.random.Generator) -> tuple[Ints, Ints]:
        """Return sampled arms, and with which arm, or -1, each episode stays."""
        config, count = self.config, len(kept)
        weights = np.exp(logits - logits.max(axis=1, keepdims=True)).cumsum(axis=1)
        sampled = (weights > rng.random((count, 1)) * weights[:, -1:]).argmax(axis=1)
        kept = np.where(rng.random(count) < config.leave, -1, kept)
        begins = (kept < 0) & (rng.random(count) < config.stay)
        kept = np.where(begins, rng.choice(self.actions, size=count), kept)
        return np.where(kept >= 0, kept, sampled), kept

    def _costs(self, states: Episodes, policy: NetworkPolicy) -> Floats:
        """Return ``Q(s, a)`` (ms) ``[states, actions]``."""
        branches = states.branched(np.repeat(np.arange(states.count), len(self.actions)))
        costs, emitted, left = np.zeros(branches.count), np.zeros(branches.count), np.arange(branches.count)
        step = branches.step(np.tile(self.actions, states.count))
        while True:
            costs[left] += step.latency_ms
            emitted[left] += step.emitted
            going = ~step.finished & (emitted[left] < self.config.horizon)
            if not going.all():
                branches.keep(going)
                left = left[going]
            if not branches.count:
                break
            step = branches.step(policy.batch(branches.observations()))
        total, tokens = costs.reshape(-1, len(self.actions)), emitted.reshape(-1, len(self.actions))
        per_token = total.sum(axis=1, keepdims=True) / tokens.sum(axis=1, keepdims=True)
        found: Floats = total - per_token * (tokens - tokens.min(axis=1, keepdims=True))
        return found

    def _fit(self, generator: torch.Generator) -> None:
        config = self.config
        observations = self._inputs(np.concatenate([lesson.observations for lesson in self.lessons]))
        advantages = torch.from_numpy(np.concatenate([lesson.advantages for lesson in self.lessons]))
        advantages = advantages / advantages.std().clamp(min=1e-6)
        optimiser = torch.optim.Adam(self.network.parameters(), lr=config.learning_rate)
        for _ in range(config.n_epochs):
            for rows in torch.randperm(len(observations), generator=generator).split(config.batch_size):
                log_p = self._log_p(observations[rows])
                loss = (log_p.exp() * (advantages[rows] + config.ent_coef * log_p)).sum(-1).mean()
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()

    def _log_p(self, inputs: Tensor) -> Tensor:
        """Return the logarithms of the chances of all that is taken ``[states, actions]``."""
        log_p: Tensor = self.network(inputs)[:, self.actions].log_softmax(-1)
        return log_p

    def _read(self) -> tuple[list[NDArray[np.float32]], list[NDArray[np.float32]]]:
        """Return weights and biases with which nothing else is chosen."""
        weights, biases = layers.read(layers.linears(self.network))
        biases[-1][self._others()] = _NEVER
        return weights, biases

    def _others(self) -> Ints:
        """Return the actions that are not taken."""
        return np.setdiff1d(np.arange(len(self.world.arms)), self.actions)

    def _width(self) -> int:
        """Return how many numbers the network reads."""
        return len(self.scale)

    def _inputs(self, observations: Observations) -> Tensor:
        """Return what the network reads ``[states, numbers]``."""
        return torch.from_numpy(observations / self.scale)

    def state(self) -> dict[str, NDArray[Any]]:
        """Return all that the next iteration depends on."""
        lessons = {f"{key}.{i}": getattr(lesson, key) for i, lesson in enumerate(self.lessons) for key in ("observations", "advantages")}
        numbers = {"iteration": np.array([self.iteration]), "seed": np.array([self.seed]), "actions": self.actions}
        return {**self.policy().tensors(), **lessons, **numbers}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on from a :meth:`state`."""
        tensors = dict(state)
        self.actions = tensors.pop("actions")
        self.iteration, self.seed = (int(tensors.pop(key)[0]) for key in ("iteration", "seed"))
        count = sum(key.startswith("observations.") for key in tensors)
        self.lessons = [Lesson(tensors.pop(f"observations.{i}"), tensors.pop(f"advantages.{i}")) for i in range(count)]
        layers.write(layers.linears(self.network), NetworkPolicy.from_tensors(tensors))


def _network(widths: tuple[int, ...], generator: torch.Generator) -> nn.Sequential:
    """Return layers with tanh between them; the last is small, so that no arm is preferred at first."""
    modules: list[nn.Module] = []
    for i, (width, following) in enumerate(pairwise(widths)):
        layer, last = nn.Linear(width, following), i == len(widths) - 2
        with torch.no_grad():
            layer.weight.normal_(std=(0.01 if last else 1.0) / width**0.5, generator=generator)
            layer.bias.zero_()
        modules += [layer] if last else [layer, nn.Tanh()]
    return nn.Sequential(*modules)
