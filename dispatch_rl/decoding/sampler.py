"""What turns logits into tokens under one :class:`Sampling`, and judges drafts by it."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from dispatch_rl.decoding.arms import Arm
from dispatch_rl.decoding.clearness import entropies_nats, two_best
from dispatch_rl.decoding.draft_features import Clarity
from dispatch_rl.decoding.drafts import DraftToken, Gap, Judgement, Look
from dispatch_rl.decoding.models import CachedModel
from dispatch_rl.decoding.sampling import Sampling
from dispatch_rl.kernels.entropy import RowStatistics
from dispatch_rl.kernels.noise import Stream, gumbel, uniform
from dispatch_rl.kernels.operations import operations
from dispatch_rl.kernels.verify import shape, verify_exact, verify_rejection

NOT_NUMBERS = "logits that are not numbers"
_NOISE_BLOCK = 1 << 17
"""Noise is made for about this many (position, token) pairs at a time."""


class Sampler:
    """Draws and verifies tokens. Noise depends on (seed, position, token), so target and students share it."""

    def __init__(self, sampling: Sampling, vocab: int, device: torch.device) -> None:
        self.sampling = sampling
        self.vocab = vocab
        self.device = device
        self._operations = operations(device)
        self._block: Tensor | None = None
        self._block_start = 0

    def next(self, student: str, model: CachedModel, gap: Gap, arm: Arm | None, clarity: bool) -> DraftToken | None:
        """Let a student read what it has not read and choose the next token.

        Args:
            student: Its name.
            model: The student.
            gap: At least one token that it has not read.
            arm: Its limits apply; None for no limits.
            clarity: Whether the token is to tell how sure the student is of it.

        Returns:
            The token; None if the student hesitates.
        """
        parts = list(gap.drafted)
        if gap.behind:
            parts.insert(0, torch.tensor(gap.behind, device=self.device))
        logits = model.forward(torch.cat(parts) if len(parts) > 1 else parts[0], rows=1)
        if arm is None and not clarity:
            return DraftToken(student, *self.draft(logits, gap.position, gap.draw), logits)
        scores = self.scores(logits, gap.position, gap.draw)
        if arm is None:
            sure = self.clarity(logits, scores)
            return DraftToken(student, *self.draft(logits, gap.position, gap.draw, scores), logits, clarity=sure)
        look = self.look(arm, logits, scores)
        if look.hesitates:
            return None
        return DraftToken(student, *self.draft(logits, gap.position, gap.draw, scores), logits, look.second, chance=look.chance)

    def run(self, student: str, model: CachedModel, gap: Gap, steps: int) -> list[DraftToken] | None:
        """Let a student choose the next ``steps`` tokens without waiting for them; None if it has to be asked for each.

        Whether it chose from numbers is known once the draft is judged: :meth:`check_run`.
        """
        return None

    def check_run(self) -> None:
        """Refuse what :meth:`run` returned if it was chosen from what is no number; exact sampling has kept it out of the text.

        Raises:
            FloatingPointError: The student's logits are not numbers.
        """

    def check(self, draft: Sequence[DraftToken]) -> None:
        """Refuse a draft that was chosen from what is no number; rejection sampling would let it into the text.

        Raises:
            FloatingPointError: The student's logits are not numbers.
        """
        logits = [d.logits for d in draft if d.logits is not None]
        if logits and torch.cat(logits).amax().isnan():
            raise FloatingPointError(NOT_NUMBERS)

    def judge(
        self, model: CachedModel, last: int, draft: Sequence[DraftToken], hedges: Mapping[int, Tensor], position: int, draw: int
    ) -> Judgement:
        """Let the target read the ``last`` token of the text, the ``draft`` and second choices beside it, and judge the draft.

        Args:
            model: The target.
            last: Token id.
            draft: Draft tokens.
            hedges: Second choices ``[1]`` by the number of the draft token beside which they stand.
            position: Position of the first draft token.
            draw: Number of the round.
        """
        tokens = torch.cat([torch.tensor([last], device=self.device), *(d.token for d in draft), *hedges.values()])
        logits = model.forward(tokens, beside=[i + 1 for i in hedges])
        q_draft = [d.q_draft for d in draft if d.q_draft is not None]
        rows = len(draft) + 1
        accepted, following = self.verify(logits[:rows], tokens[1:rows], torch.cat(q_draft) if q_draft else None, position, draw)
        return Judgement(logits, accepted, following, tokens.tolist())

    def draft(self, logits: Tensor, position: int, draw: int, scores: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Choose a student's token for ``position`` from its ``logits [1, vocab]``, of which the ``scores`` may be known.

        Returns:
            The token ``[1]``, and for rejection sampling the probabilities ``[1, vocab]`` it was drawn from.
        """
        token = (self.scores(logits, position, draw) if scores is None else scores).argmax(-1)
        return token, self._shaped(logits).softmax(-1) if self._rejects else None

    def scores(self, logits: Tensor, position: int, draw: int) -> Tensor:
        """Return what a student's token for ``position`` is the largest of ``[1, vocab]``: the logits, or shaped and with noise."""
        if self.sampling.greedy:
            return logits
        shaped = self._shaped(logits)
        if self.sampling.method == "coupled":
            return shaped + self._noise(position, 1)
        return shaped + gumbel(self.sampling.seed, self._positions(position, 1), self.vocab, Stream.DRAFT, draw)

    def look(self, arm: Arm, logits: Tensor, scores: Tensor) -> Look:
        """Return how sure a student that follows ``arm`` is of what it would draft from ``logits`` by ``scores [1, vocab]``.

        Raises:
            FloatingPointError: The logits are not numbers.
        """
        margins, second = two_best(scores)
        return self.look_at(arm, float(margins), 0.0 if arm.max_entropy is None else float(entropies_nats(logits)), second)

    def look_at(self, arm: Arm, margin: float, entropy_nats: float, second: Tensor) -> Look:
        """Return the same from how clear the choice is and its second best ``[1]``.

        Raises:
            FloatingPointError: One of them is not a number.
        """
        if math.isnan(margin) or math.isnan(entropy_nats):
            raise FloatingPointError(NOT_NUMBERS)
        unclear = arm.min_margin is not None and margin < arm.min_margin
        hedges = arm.hedge_below is not None and margin < arm.hedge_below and not self._rejects
        unclear |= arm.max_entropy is not None and entropy_nats > arm.max_entropy
        return Look(unclear, 1.0 if arm.min_confidence is None else arm.chance(margin), second if hedges else None)

    def clarity(self, logits: Tensor, scores: Tensor) -> Clarity:
        """Return how sure a student is of what it drafts from ``logits`` by ``scores [1, vocab]``; one read of the device.

        Raises:
            FloatingPointError: The logits are not numbers.
        """
        return self.sure(*torch.cat([two_best(scores)[0], entropies_nats(logits)]).tolist())

    def sure(self, margin: float, entropy_nats: float) -> Clarity:
        """Return the same from the numbers.

        Raises:
            FloatingPointError: One of them is not a number.
        """
        if math.isnan(margin) or math.isnan(entropy_nats):
            raise FloatingPointError(NOT_NUMBERS)
        return Clarity(margin, entropy_nats)

    def verify(self, logits: Tensor, drafted: Tensor, q_draft: Tensor | None, position: int, draw: int) -> tuple[int, int]:
        """Judge a draft by the target's ``logits [draft + 1, vocab]``.

        Args:
            logits: The target's predictions for the draft's positions and the one behind.
            drafted: Draft tokens ``[draft]``.
            q_draft: Probabilities that the tokens were drawn from ``[draft, vocab]``; None unless rejection sampling.
            position: Position of the first draft token.
            draw: Number of the round.

        Returns:
            The number of accepted tokens and the token that follows them.
        """
        if self.sampling.greedy:
            return verify_exact(logits, drafted)
        shaped, rows = self._shaped(logits), len(logits)
        if self.sampling.method == "coupled":
            return verify_exact(shaped + self._noise(position, rows), drafted)
        positions = self._positions(position, rows)
        accept = uniform(self.sampling.seed, positions[:-1], 1, Stream.ACCEPT, draw)[:, 0]
        noise = gumbel(self.sampling.seed, positions, self.vocab, Stream.RESIDUAL, draw)
        q_draft = logits.new_empty((0, self.vocab)) if q_draft is None else q_draft
        return verify_rejection(shaped.softmax(-1), q_draft, drafted, accept, noise)

    def statistics(self, logits: Tensor, rows: int) -> RowStatistics:
        """Return the statistics of the first ``rows`` of the ``logits`` that were verified last."""
        return self._operations.entropy(logits[:rows])

    def one_hot(self, token: Tensor) -> Tensor | None:
        """Return what a student without probabilities drew ``token [1]`` from; None unless rejection sampling."""
        if not self._rejects:
            return None
        return torch.nn.functional.one_hot(token, self.vocab).float()

    @property
    def _rejects(self) -> bool:
        return not self.sampling.greedy and self.sampling.method == "rejection"

    def _shaped(self, logits: Tensor) -> Tensor:
        return shape(logits, self.sampling.temperature, self.sampling.top_k, self.sampling.top_p)

    def _positions(self, first: int, count: int) -> Tensor:
        return torch.arange(first, first + count, device=self.device)

    def _noise(self, first: int, count: int) -> Tensor:
        """Return coupled noise ``[count, vocab]`` for the positions from ``first`` on, made in blocks and kept."""
        offset = first - self._block_start
        if self._block is None or offset < 0 or offset + count > len(self._block):
            self.prepare(first, count)
            offset = 0
        assert self._block is not None
        return self._block[offset : offset + count]

    def prepare(self, first: int, count: int = 1) -> int:
        """Make the noise of the positions from ``first`` on and return for how many: at least ``count``."""
        block = max(count, _NOISE_BLOCK // self.vocab)
        self._block = gumbel(self.sampling.seed, self._positions(first, block), self.vocab)
        self._block_start = first
        return block
