"""Verification: how much of a draft stands, and which token follows it.

Notation: ``p_target`` is the target's distribution and ``q_draft`` the student's (Leviathan et al. 2023, arXiv 2211.17192), both after
temperature, top-k and top-p. Row ``i`` of the target's logits is its prediction for draft token ``i``; the last row is for the token
after a draft that stands whole.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from dispatch_rl.kernels.entropy import RowStatistics, entropy
from dispatch_rl.kernels.noise import Stream, gumbel, uniform

HEADER = 3
"""Integers that :class:`Verified` begins with."""


class Rule(NamedTuple):
    """How drafts are judged; a captured graph keeps its rule."""

    method: Literal["greedy", "coupled", "rejection"] = "greedy"
    """Whether the target's likeliest token is taken, its sample under Gumbel coupling, or rejection sampling is done."""
    top_k: int | None = None
    """Keep the k likeliest tokens; None keeps all."""
    top_p: float | None = None
    """Keep the likeliest tokens up to this probability; None keeps all."""

    @property
    def filters(self) -> bool:
        """Whether some tokens are excluded."""
        return self.top_k is not None or (self.top_p is not None and self.top_p < 1)


class Turn(NamedTuple):
    """What differs from round to round: tensors of one number on the device, so that a captured graph reads them anew."""

    seed: Tensor
    """Seed of the noise, its 64 bits held in int64."""
    position: Tensor
    """Position of the first draft token, int64."""
    draw: Tensor
    """Number of the round, int64."""
    num_drafted: Tensor
    """Number of draft tokens, int64."""
    temperature: Tensor
    """Divides the logits, float32."""

    @classmethod
    def of(cls, integers: Tensor, temperature: Tensor) -> "Turn":
        """Return the turn whose first four numbers are ``integers [4]``, as views of them."""
        seed, position, draw, num_drafted = integers.unbind(0)
        return cls(seed, position, draw, num_drafted, temperature)


class Verified(NamedTuple):
    """What :func:`verify` finds, in one piece, so that one copy brings it to the host."""

    packed: Tensor
    """int64 ``[3 + 3 rows]``: accepted, following, arm, the argmaxes, and the bits of the other statistics, two to an integer."""

    @property
    def accepted(self) -> Tensor:
        """Number of leading draft tokens that stand ``[]``."""
        return self.packed[0]

    @property
    def following(self) -> Tensor:
        """The token that follows them ``[]``."""
        return self.packed[1]

    @property
    def arm(self) -> Tensor:
        """Where :func:`dispatch_rl.kernels.dispatch.dispatch` puts the next arm ``[]``."""
        return self.packed[2]

    @property
    def rows(self) -> int:
        """Number of rows."""
        return (len(self.packed) - HEADER) // 3

    @property
    def statistics(self) -> RowStatistics:
        """The statistics of every row of logits, before temperature."""
        entropy_nats, top1_probability, margin, logsumexp = self.packed[HEADER + self.rows :].view(torch.float32).view(4, -1).unbind(0)
        return RowStatistics(entropy_nats, top1_probability, margin, self.packed[HEADER : HEADER + self.rows], logsumexp)


def verify(logits: Tensor, drafted: Tensor, turn: Turn, rule: Rule, q_draft: Tensor | None = None) -> Verified:
    """Judge a draft by the target's logits without leaving the device.

    Args:
        logits: The target's predictions for the draft's positions and the one behind ``[rows, vocab]``.
        drafted: Draft tokens ``[rows - 1]``; those from ``turn.num_drafted`` on are filling, and so are the rows behind that.
        turn: Seed, position, round, draft length and temperature.
        rule: How drafts are judged.
        q_draft: Probabilities that the tokens were drawn from ``[rows - 1, vocab]``; None without a draft and
            unless rejection sampling.
    """
    rows = torch.arange(len(logits), device=logits.device)
    if rule.method == "greedy":
        chosen = logits.float().argmax(-1)
    else:
        shaped = shape(logits, turn.temperature, rule.top_k, rule.top_p)
        if rule.method == "rejection":
            q_draft = shaped[:0] if q_draft is None else q_draft
            return _packed(*_reject(shaped.softmax(-1), q_draft, drafted, turn, rows), entropy(logits))
        chosen = (shaped + gumbel(turn.seed.expand(len(rows)), turn.position + rows, logits.shape[1])).argmax(-1)
    accepted = leading((chosen[:-1] == drafted) & (rows[:-1] < turn.num_drafted))
    return _packed(accepted, chosen.index_select(0, accepted.view(1)), entropy(logits))


def _reject(p_target: Tensor, q_draft: Tensor, drafted: Tensor, turn: Turn, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return what :func:`verify_rejection` does, with its random numbers drawn here."""
    seed, positions, vocab = turn.seed.expand(len(rows)), turn.position + rows, p_target.shape[1]
    uniforms = uniform(seed, positions, 1, Stream.ACCEPT, turn.draw)[:-1, 0]
    p, q = (table.gather(1, drafted[:, None])[:, 0] for table in (p_target[:-1], q_draft))
    accepted = leading((uniforms * q < p) & (rows[:-1] < turn.num_drafted))
    row = accepted.view(1)
    rest = p_target.index_select(0, row)
    q_rest = torch.cat([q_draft, torch.zeros_like(rest)]).index_select(0, row)
    residual = (rest - q_rest.where(accepted < turn.num_drafted, 0)).clamp(min=0)
    rest = torch.where(residual.sum() > 0, residual, rest)
    noise = gumbel(turn.seed.expand(1), turn.position + row, vocab, Stream.RESIDUAL, turn.draw)
    return accepted, (rest.log() + noise).argmax(-1)


def _packed(accepted: Tensor, following: Tensor, found: RowStatistics) -> Verified:
    numbers = torch.stack([found.entropy_nats, found.top1_probability, found.margin, found.logsumexp])
    header = [accepted.view(1), following.view(1), torch.zeros_like(following).view(1)]
    return Verified(torch.cat([*header, found.argmax, numbers.flatten().view(torch.int64)]))


def shape(logits: Tensor, temperature: float | Tensor, top_k: int | None = None, top_p: float | None = None) -> Tensor:
    """Return ``logits [rows, vocab]`` in float32 after temperature, top-k and top-p; excluded tokens become ``-inf``.

    The order and the treatment of ties are those of transformers' logits warpers: every token as likely as the k-th stays, and
    top-p keeps the smallest set whose probability reaches ``top_p``.
    """
    scores = logits.float() / temperature
    if top_k is not None and top_k < scores.shape[-1]:
        kth = scores.topk(top_k, dim=-1).values[:, -1:]
        scores = scores.masked_fill(scores < kth, -torch.inf)
    if top_p is not None and top_p < 1.0:
        ascending, order = scores.sort(dim=-1)
        excluded = ascending.softmax(-1).cumsum(-1) <= 1 - top_p
        excluded[:, -1] = False
        scores = scores.masked_fill(excluded.scatter(-1, order, excluded), -torch.inf)
    return scores


def leading(stands: Tensor) -> Tensor:
    """Return the number of leading true values of ``stands [draft]``."""
    return stands.long().cumprod(0).sum()


def verify_exact(scores: Tensor, drafted: Tensor) -> tuple[int, int]:
    """Accept draft tokens while each equals the target's own choice.

    With greedy decoding the scores are logits; with Gumbel coupling they are shaped logits plus noise, and the emitted text is the
    target's own sample whatever was drafted.

    Args:
        scores: What the target maximises ``[draft + 1, vocab]``.
        drafted: Draft tokens ``[draft]``.

    Returns:
        The number of accepted tokens and the token that follows them.
    """
    chosen = scores.argmax(-1).tolist()
    accepted = 0
    # The few tokens of a draft are compared sooner than one operation begins.
    for token in drafted.tolist():
        if token != chosen[accepted]:
            break
        accepted += 1
    return accepted, chosen[accepted]


def verify_rejection(p_target: Tensor, q_draft: Tensor, drafted: Tensor, uniforms: Tensor, noise: Tensor) -> tuple[int, int]:
    """Accept draft token ``x`` with probability ``min(1, p_target(x) / q_draft(x))``, else draw from the residual.

    The residual is ``max(p_target - q_draft, 0)``, normalised; emitted tokens are distributed as the target's own.

    Args:
        p_target: Target probabilities ``[draft + 1, vocab]``.
        q_draft: Student probabilities ``[draft, vocab]``.
        drafted: Draft tokens, drawn from ``q_draft`` ``[draft]``.
        uniforms: One number in (0, 1) for each draft token ``[draft]``.
        noise: Gumbel noise for the token after the accepted ones ``[draft + 1, vocab]``.

    Returns:
        The number of accepted tokens and the token that follows them.
    """
    rows = torch.arange(len(drafted), device=drafted.device)
    accepted = int(leading(uniforms * q_draft[rows, drafted] < p_target[rows, drafted]))
    rest = p_target[accepted]
    if accepted < len(drafted):
        residual = (rest - q_draft[accepted]).clamp(min=0)
        # With p_target == q_draft up to rounding nothing is left over; any token of the target is then right.
        rest = residual if residual.sum() > 0 else rest
    return accepted, int((rest.log() + noise[accepted]).argmax())
