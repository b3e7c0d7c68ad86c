"""Sampling and verification by kernels: the tokens stay on the device, and one copy of a few integers tells the host of a round."""

import torch
from torch import Tensor

from dispatch_rl.decoding.drafting import Sampler
from dispatch_rl.decoding.sampling import Sampling
from dispatch_rl.kernels.entropy import RowStatistics
from dispatch_rl.kernels.operations import Operations, operations
from dispatch_rl.kernels.verify import Rule, Turn, Verified


def make_sampler(sampling: Sampling, vocab: int, device: torch.device) -> Sampler:
    """Return what samples on ``device``."""
    found = operations(device)
    return DeviceSampler(sampling, vocab, device, found) if found.compiled else Sampler(sampling, vocab, device)


class DeviceSampler(Sampler):
    """A :class:`Sampler` whose rounds are one chain of kernels."""

    def __init__(self, sampling: Sampling, vocab: int, device: torch.device, chosen: Operations) -> None:
        super().__init__(sampling, vocab, device)
        self._operations = chosen
        self._rule = Rule("greedy" if sampling.greedy else sampling.method, sampling.top_k, sampling.top_p)
        # int64 holds the seed's 64 bits.
        seed = sampling.seed - 2**64 if sampling.seed >= 2**63 else sampling.seed
        integers = torch.tensor([seed, 0, 0, 0], device=device)
        self._turn = Turn.of(integers, torch.tensor(sampling.temperature, device=device))
        self._no_tokens = torch.empty(0, dtype=torch.int64, device=device)
        self._report = torch.empty(0, dtype=torch.int64)
        self._told = Verified(self._report)

    def draft(self, logits: Tensor, position: int, draw: int, scores: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        if scores is not None or self._rule.method == "rejection":
            return super().draft(logits, position, draw, scores)
        return self._verified(logits, self._no_tokens, None, position, draw).following.view(1), None

    def verify(self, logits: Tensor, drafted: Tensor, q_draft: Tensor | None, position: int, draw: int) -> tuple[int, int]:
        self._told = self._to_host(self._verified(logits, drafted, q_draft, position, draw))
        return int(self._told.accepted), int(self._told.following)

    def statistics(self, logits: Tensor, rows: int) -> RowStatistics:
        """Return what verification found on its way; the logits are not read again."""
        return RowStatistics(*(value[:rows] for value in self._told.statistics))

    def _verified(self, logits: Tensor, drafted: Tensor, q_draft: Tensor | None, position: int, draw: int) -> Verified:
        self._turn.position.fill_(position)
        self._turn.draw.fill_(draw)
        self._turn.num_drafted.fill_(len(drafted))
        return self._operations.verify(logits, drafted, self._turn, self._rule, q_draft)

    def _to_host(self, found: Verified) -> Verified:
        """Wait for a round's integers in pinned memory."""
        size = len(found.packed)
        if size > len(self._report):
            self._report = torch.empty(size, dtype=torch.int64, pin_memory=self.device.type == "cuda")
        report = self._report[:size]
        report.copy_(found.packed, non_blocking=True)
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()
        return Verified(report)
