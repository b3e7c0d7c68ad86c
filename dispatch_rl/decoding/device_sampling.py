"""Sampling and verification by kernels: the tokens stay on the device, and one copy of a few integers tells the host of a round."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from dispatch_rl.decoding.arms import Arm
from dispatch_rl.decoding.drafts import DraftToken, Gap, Judgement
from dispatch_rl.decoding.models import CachedModel
from dispatch_rl.decoding.programs import Chosen
from dispatch_rl.decoding.sampler import NOT_NUMBERS, Sampler
from dispatch_rl.decoding.sampling import Sampling
from dispatch_rl.decoding.static import MOST, SLOTS, Choice, Told
from dispatch_rl.kernels.entropy import RowStatistics
from dispatch_rl.kernels.operations import Operations, operations
from dispatch_rl.kernels.verify import HEADER, Rule, Turn, Verified

_USUAL_REPORT = HEADER + 4 * MOST + SLOTS * (HEADER + 3)
"""Numbers that a captured judgement and the longest draft before it tell; more are rare, and pinned memory takes long to get."""


def make_sampler(sampling: Sampling, vocab: int, device: torch.device) -> Sampler:
    """Return what samples on ``device``."""
    found = operations(device)
    return DeviceSampler(sampling, vocab, device, found) if found.compiled else Sampler(sampling, vocab, device)


def rule_of(sampling: Sampling) -> Rule:
    """Return how drafts are judged under ``sampling``."""
    return Rule() if sampling.greedy else Rule(sampling.method, sampling.top_k, sampling.top_p)


class DeviceSampler(Sampler):
    """A :class:`Sampler` whose rounds are one chain of kernels; where a model has graphs, they are part of its graphs."""

    def __init__(self, sampling: Sampling, vocab: int, device: torch.device, chosen: Operations) -> None:
        super().__init__(sampling, vocab, device)
        self._operations = chosen
        self._rule = rule_of(sampling)
        # int64 holds the seed's 64 bits.
        self._seed = sampling.seed - 2**64 if sampling.seed >= 2**63 else sampling.seed
        integers = torch.tensor([self._seed, 0, 0, 0], device=device)
        self._turn = Turn.of(integers, torch.tensor(sampling.temperature, device=device))
        self._no_tokens = torch.empty(0, dtype=torch.int64, device=device)
        self._report = torch.empty(_USUAL_REPORT, dtype=torch.int64, pin_memory=device.type == "cuda")
        self._told = Verified(self._report[:HEADER])
        self._untold: list[Tensor] = []
        """Of a draft that the host has not waited for, what :class:`DraftToken` calls its rows."""
        self._told_nan = False

    def next(self, student: str, model: CachedModel, gap: Gap, arm: Arm | None, clarity: bool) -> DraftToken | None:
        watched = arm is not None or clarity
        found = self._drafted(model, gap, 1, watched)
        if found is None:
            return super().next(student, model, gap, arm, clarity)
        token, row = found[0]
        if not watched:
            return DraftToken(student, token, None, row=row)
        told = self._to_host(Verified(row))
        margin, entropy_nats = float(told.statistics.margin), float(told.statistics.entropy_nats)
        if arm is None:
            return DraftToken(student, token, None, clarity=self.sure(margin, entropy_nats), known=int(told.following))
        look = self.look_at(arm, margin, 0.0 if arm.max_entropy is None else entropy_nats, Verified(row).arm.view(1))
        if look.hesitates:
            return None
        return DraftToken(student, token, None, second=look.second, chance=look.chance, known=int(told.following))

    def run(self, student: str, model: CachedModel, gap: Gap, steps: int) -> list[DraftToken] | None:
        found = self._drafted(model, gap, steps, False)
        if found is None:
            return None
        self._untold = [row for _, row in found]
        return [DraftToken(student, token, None, row=row) for token, row in found]

    def check_run(self) -> None:
        nan, self._told_nan = self._told_nan, False
        if nan:
            raise FloatingPointError(NOT_NUMBERS)

    def check(self, draft: Sequence[DraftToken]) -> None:
        super().check(draft)
        rows = [d.row for d in draft if d.row is not None]
        # Reading it waits for the draft.
        if rows and _any_nan(torch.stack(rows).cpu()):
            raise FloatingPointError(NOT_NUMBERS)

    def judge(
        self, model: CachedModel, last: int, draft: Sequence[DraftToken], hedges: Mapping[int, Tensor], position: int, draw: int
    ) -> Judgement:
        found = None
        if model.programs is not None and self._rule.method != "rejection":
            found = model.programs.judge(self._rule, self._numbers(position, draw), last, [d.token for d in draft], hedges)
        if found is None:
            return super().judge(model, last, draft, hedges, position, draw)
        self._told, read = found.told(self._to_host(Verified(found.report)).packed)
        tokens = read[: 1 + len(draft) + len(hedges)]
        return Judgement(found.logits, int(self._told.accepted), int(self._told.following), tokens)

    def _drafted(self, model: CachedModel, gap: Gap, steps: int, watched: bool) -> list[Chosen] | None:
        """Return what a student's graphs choose; None if it has none for that."""
        if model.programs is None or self._rule.method == "rejection":
            return None
        told = self._numbers(gap.position, gap.draw, gap.slot)
        return model.programs.draft(Choice(self._rule, watched), told, gap.behind, gap.drafted, steps)

    def _numbers(self, position: int, draw: int, slot: int = 0) -> Told:
        return Told(position, slot, draw, self._seed, self.sampling.temperature)

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
        """Wait for a round's integers in pinned memory, and for those of the draft before it if nobody has."""
        untold, self._untold = self._untold, []
        packed = torch.cat([found.packed, *untold]) if untold else found.packed
        size = len(packed)
        if size > len(self._report):
            self._report = torch.empty(size, dtype=torch.int64, pin_memory=self.device.type == "cuda")
        report = self._report[:size]
        report.copy_(packed, non_blocking=True)
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()
        # What is told stays as it is when the next is told.
        told = report.clone()
        if untold:
            told, rows = told.split([len(found.packed), size - len(found.packed)])
            self._told_nan = _any_nan(rows.view(-1, HEADER + 3))
        return Verified(told)


def _any_nan(rows: Tensor) -> bool:
    """Return whether one of the choices ``[tokens, numbers]`` was made from what is no number: its entropy then is none."""
    # It lies in the first half of this number.
    return bool(rows.view(torch.float32)[:, 2 * (HEADER + 1)].isnan().any())
