"""How well a policy does on the validation prompts, by which the best one is chosen."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from dispatch_rl.config import TrainConfig
from dispatch_rl.decoding.arms import ArmTable
from dispatch_rl.decoding.families import Family
from dispatch_rl.decoding.loop import decode
from dispatch_rl.decoding.rounds import RoundTable, metrics
from dispatch_rl.policies.base import Policy
from dispatch_rl.prompts import Prompt
from dispatch_rl.replay.oracle import cheapest
from dispatch_rl.replay.running import fixed_latencies_ms, replay
from dispatch_rl.replay.world import ReplayWorld


class Validation(Protocol):
    """Tries policies on the validation prompts."""

    best_fixed: int | None
    """The arm that is fastest on them if it is always chosen; None if that is not known."""

    def __call__(self, policy: Policy) -> Mapping[str, float]:
        """Return metrics of a policy, ``latency_ms_per_token`` among them."""
        ...


class ReplayValidation:
    """Exact, and with bounds: besides latency and acceptance, how much of the way from the best fixed arm to the oracle is gone.

    Args:
        world: The validation texts.
    """

    def __init__(self, world: ReplayWorld) -> None:
        self._world = world
        tokens = (world.traces.lengths - world.traces.first_position)[world.texts].sum()
        fixed_ms = fixed_latencies_ms(world).sum(axis=1)
        self.best_fixed: int | None = int(fixed_ms.argmin())
        self.best_fixed_ms = float(fixed_ms.min() / tokens)
        self.oracle_ms = float(cheapest(world).latency_ms.sum() / tokens)

    def __call__(self, policy: Policy) -> dict[str, float]:
        replayed = replay(self._world, policy)
        latency_ms = replayed.latency_ms_per_token
        found = {"latency_ms_per_token": latency_ms, **_acceptance(replayed.rounds)}
        if self.best_fixed_ms > self.oracle_ms:
            found["gap_closed"] = (self.best_fixed_ms - latency_ms) / (self.best_fixed_ms - self.oracle_ms)
        return found


class LiveValidation:
    """Measured.

    Args:
        family: The models.
        arms: What is chosen from.
        prompts: What is decoded.
        config: How long texts become, and how tokens are chosen.
    """

    best_fixed: int | None = None

    def __init__(self, family: Family, arms: ArmTable, prompts: Sequence[Prompt], config: TrainConfig) -> None:
        self._family = family
        self._arms = arms
        self._prompts = prompts
        self._config = config

    def __call__(self, policy: Policy) -> dict[str, float]:
        longest = self._config.prompts.max_new_tokens
        texts = [
            decode(self._family, policy, self._arms, prompt.tokens, prompt.sampling(self._config.sampling), longest)
            for prompt in self._prompts
        ]
        latency_ms = sum(text.decoding_ms for text in texts) / sum(len(text.tokens) - 1 for text in texts)
        return {
            "latency_ms_per_token": latency_ms,
            **_acceptance(RoundTable.of([(text.rounds, text.entropies_at_decision) for text in texts])),
        }


def _acceptance(rounds: RoundTable) -> dict[str, float]:
    found = metrics(rounds)
    return {key: found[key] for key in ("draft_acceptance_rate", "mean_acceptance_length") if found[key] is not None}
