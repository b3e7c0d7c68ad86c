"""Policy iteration that knows everything there is to know before drafting, the target's last hidden state included.

A clairvoyant oracle foresees the noise too, so nobody can reach it. What a policy of any size can reach with what is known before a round
is bounded more tightly by this one: beside the features it sees the target's hidden state from which the last token was chosen, and the
embedding of that token. It is not exported: on a text that is being decoded, its first layer would cost more than it gains.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dispatch_rl.decoding.families import Family, load_family
from dispatch_rl.decoding.features import Feature
from dispatch_rl.errors import UserError
from dispatch_rl.iteration import PolicyIteration
from dispatch_rl.policies.base import Actions, Policy
from dispatch_rl.policies.network import NetworkPolicy
from dispatch_rl.prompts import Split
from dispatch_rl.race import Race
from dispatch_rl.replay.running import replay
from dispatch_rl.replay.traces import Traces
from dispatch_rl.replay.world import ReplayWorld
from dispatch_rl.study.data import Data
from dispatch_rl.study.trials import Trial

Array = NDArray[np.float32]

_WIDTHS = [256, 128]
"""Of the hidden layers."""
_STATE = Feature("state", "1", 0, 2**24, 1, "which state of the recording it is, exact up to 2**24")


@torch.inference_mode()
def known(family: Family, traces: Traces) -> Array:
    """Return what the target knows at every state ``[states, 2 * hidden size]``: where it chose the last token, and that token.

    Both halves have a root mean square of one; they are zero before the first token.

    Raises:
        UserError: The recording has no prompts or no tokens.
    """
    model: Any = family.target.model
    device, embedding = family.target.device, model.get_input_embeddings().weight
    size = embedding.shape[1]
    found = np.zeros((traces.num_positions + traces.num_texts, 2 * size), dtype=np.float32)
    for text in range(traces.num_texts):
        path = traces.path_tokens(text)
        if path is None or not traces.prompt_lengths[text]:
            raise UserError(f"{traces.source}: the recording has no tokens, from which hidden states could be made")
        tokens = torch.tensor([*traces.prompt(text), *path], device=device)
        hidden = model(tokens[None], output_hidden_states=True, logits_to_keep=1).hidden_states[-1][0, -len(path) - 1 : -1]
        first = int(traces.offsets[text]) + text + 1
        for half, values in enumerate((hidden, embedding[tokens[-len(path) :]])):
            normed = values.float() / values.float().square().mean(-1, keepdim=True).sqrt().clamp(min=1e-6)
            found[first : first + len(path), half * size : (half + 1) * size] = normed.cpu().numpy()
    return found


class InformedWorld(ReplayWorld):
    """A replay world with what is known at every state.

    Args:
        world: What is replayed.
        known: ``[states, numbers]``.
    """

    def __init__(self, world: ReplayWorld, known: Array) -> None:
        self.__dict__.update(world.__dict__)
        self.known = known
        self.column = len(world.features) - 2 * len(world.traces.students)
        """Where the number of the state stands in an observation: before what the rounds tell of the students."""
        self.features = (*world.features[: self.column], _STATE, *world.features[self.column :])
        self.static = np.insert(world.static, self.column, np.arange(len(world.static), dtype=np.float32), axis=1)


class InformedPolicy(Policy):
    """A network over features and what is known at each state of one world.

    Args:
        world: What is replayed.
        network: Reads features, the state's number left out, and what is known.
    """

    def __init__(self, world: InformedWorld, network: NetworkPolicy) -> None:
        self.network = network
        self._column = world.column
        (first, *weights), (bias, *biases) = network.layers()
        count, scale = len(world.features) - 1, np.array([f.scale for f in world.features], dtype=np.float32)
        # What the first layer makes of a state is the same whenever a policy gets there.
        self._states = world.known @ first[:, count:].T + bias
        own = np.insert(first[:, :count], world.column, 0.0, axis=1)
        joined = np.concatenate([own, np.eye(len(bias), dtype=np.float32)], axis=1)
        scale = np.concatenate([scale, np.ones(len(bias), dtype=np.float32)])
        self._rest = NetworkPolicy(scale, [joined, *weights], [np.zeros_like(bias), *biases])

    def on(self, world: InformedWorld) -> "InformedPolicy":
        """Return the same policy for another world."""
        return InformedPolicy(world, self.network)

    def __call__(self, observation: Array) -> int:
        return int(self.batch(observation[None])[0])

    def batch(self, observations: Array) -> Actions:
        actions: Actions = self.batch_logits(observations).argmax(axis=1)
        return actions

    def batch_logits(self, observations: Array) -> Array:
        """Return the logits of many ``observations [n, features]`` at once ``[n, actions]``."""
        states = self._states[observations[:, self._column].astype(np.int64)]
        return self._rest.batch_logits(np.concatenate([observations, states], axis=1))


class InformedIteration(PolicyIteration):
    """Policy iteration whose network also reads what is known."""

    world: InformedWorld

    def policy(self) -> InformedPolicy:  # type: ignore[override]
        scale = np.delete(self.scale, self.world.column)
        scale = np.concatenate([scale, np.ones(self.world.known.shape[1], dtype=np.float32)])
        return InformedPolicy(self.world, NetworkPolicy(scale, *self._read()))

    def _width(self) -> int:
        known: int = self.world.known.shape[1]
        return len(self.scale) - 1 + known

    def _inputs(self, observations: Array) -> Tensor:
        states = observations[:, self.world.column].astype(np.int64)
        scaled = np.delete(observations / self.scale, self.world.column, axis=1)
        return torch.from_numpy(np.concatenate([scaled, self.world.known[states]], axis=1))


def informed_world(family: Family, data: Data, part: Split) -> InformedWorld:
    """Return a part of the texts with what the target knows."""
    world = data.world(part)
    return InformedWorld(world, known(family, world.traces))


@dataclass(frozen=True)
class InformedTrial(Trial):
    """An informed policy to be trained; the one that is best on the validation texts is kept. Killed, it begins again."""

    def train(self, update: Callable[[int, str], None]) -> None:
        family = load_family(self.config.family)
        config = replace(self.config.policy_iteration, net_arch=_WIDTHS)
        validation = informed_world(family, self.data, "validation")
        world, best = informed_world(family, self.data, "train"), float("inf")
        race = Race(lambda seed, among: InformedIteration(world, config, seed, None, among), world, config, self.config.seed)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.path.with_suffix(".part")
        while not race.finished:
            race.learner.step()
            policy = race.learner.policy()
            latency_ms = replay(validation, policy.on(validation)).latency_ms_per_token
            if latency_ms < best:
                best = latency_ms
                policy.network.save(unfinished)
            race.judge(latency_ms)
            update(race.done * config.states, f"{latency_ms:.3f} ms per token on validation texts")
        unfinished.replace(self.path)
