"""Live, paired comparison of policies: every policy decodes every prompt, in random order, in one process."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from dispatch_rl.decoding.arms import NONE, Arm, ArmTable
from dispatch_rl.decoding.families import Family
from dispatch_rl.decoding.loop import DecodedText, decode, warm_up
from dispatch_rl.decoding.rounds import metrics
from dispatch_rl.decoding.sampling import Sampling
from dispatch_rl.errors import UserError
from dispatch_rl.policies.base import Policy
from dispatch_rl.policies.fixed import FixedPolicy
from dispatch_rl.prompts import Prompt
from dispatch_rl.statistics import Interval, paired_difference, ratio_of_sums

TARGET_ALONE = "target alone"


@dataclass(frozen=True)
class Comparison:
    """What every policy took for every prompt. ``texts[policy][i]`` belongs to ``prompts[i]``."""

    prompts: tuple[Prompt, ...]
    texts: Mapping[str, tuple[DecodedText, ...]]
    seed: int
    device: str

    def latency_ms_per_token(self, policy: str) -> Interval:
        """Return decoding time / tokens emitted after the first, with its 95 % interval."""
        return ratio_of_sums(self._times(policy), self._tokens(policy), self.seed)

    def difference_ms_per_token(self, policy: str, other: str) -> Interval:
        """Return how much more ``policy`` took per token than ``other``, paired by prompt."""
        return paired_difference(self._times(policy), self._times(other), self._tokens(policy), self.seed)

    def rows(self) -> list[dict[str, Any]]:
        """Return one row per policy under the names of the design, fastest last."""
        alone = self.latency_ms_per_token(TARGET_ALONE).value
        rows = [self._row(policy, alone) for policy in self.texts]
        return sorted(rows, key=lambda row: float(row["latency_ms_per_token"]), reverse=True)

    def _row(self, policy: str, alone: float) -> dict[str, Any]:
        texts = self.texts[policy]
        latency = self.latency_ms_per_token(policy)
        return {
            "policy": policy,
            "mode": "live",
            "latency_ms_per_token": latency.value,
            "ci_low": latency.low,
            "ci_high": latency.high,
            "speedup": alone / latency.value,
            **metrics(list(chain.from_iterable(text.rounds for text in texts))),
            "time_to_first_token_ms": float(np.median([text.prefill_ms for text in texts])),
            "decision_overhead": sum(text.decision_ms for text in texts) / sum(text.decoding_ms for text in texts),
            "gap_closed": None,
            "num_prompts": len(texts),
            "device": self.device,
            "seed": self.seed,
        }

    def _times(self, policy: str) -> np.ndarray[Any, np.dtype[np.float64]]:
        return np.array([text.decoding_ms for text in self.texts[policy]])

    def _tokens(self, policy: str) -> np.ndarray[Any, np.dtype[np.float64]]:
        return np.array([len(text.tokens) - 1 for text in self.texts[policy]], dtype=float)


def compare(
    family: Family,
    policies: Mapping[str, Policy],
    arms: ArmTable,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    max_new_tokens: int,
    seed: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Comparison:
    """Decode every prompt with the target alone and with every policy of ``policies``.

    Raises:
        UserError: The device is not deterministic enough: two policies got different text for one prompt.
    """
    table = ArmTable([*arms, *([] if Arm(NONE) in arms else [Arm(NONE)])])
    contestants = {TARGET_ALONE: FixedPolicy(list(table).index(Arm(NONE))), **policies}
    warm_up(family, table)
    rng = np.random.default_rng(seed)
    texts: dict[str, list[DecodedText]] = {name: [] for name in contestants}
    for done, prompt in enumerate(prompts):
        for name in rng.permutation(list(contestants)):
            text = decode(family, contestants[name], table, prompt.tokens, prompt.sampling(sampling), max_new_tokens)
            texts[name].append(text)
        if sampling.greedy or sampling.method == "coupled":
            _check_same_text(prompt, {name: decoded[-1] for name, decoded in texts.items()})
        progress(done + 1, len(prompts))
    device = family.device_name()
    return Comparison(tuple(prompts), {name: tuple(decoded) for name, decoded in texts.items()}, seed, device)


def _check_same_text(prompt: Prompt, texts: Mapping[str, DecodedText]) -> None:
    expected = texts[TARGET_ALONE].tokens
    for name, text in texts.items():
        if text.tokens != expected:
            raise UserError(
                f"'{name}' changed the text of a {prompt.kind} prompt (seed {prompt.seed}): "
                "the device rounds one token and several differently; set family.dtype to float32"
            )
