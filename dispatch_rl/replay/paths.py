"""The target's own texts, many at a time, and what the students would have chosen along them.

A batch stands in columns: the prompts end in the same column (filled up on their left), the paths follow (filled up on their right).
Noise, temperature, top-k and top-p are those of live decoding, so the texts are those of live decoding.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dispatch_rl.decoding.cache import RollbackCache
from dispatch_rl.decoding.families import Family
from dispatch_rl.decoding.sampling import Sampling
from dispatch_rl.kernels.entropy import RowStatistics, entropy
from dispatch_rl.kernels.noise import gumbel
from dispatch_rl.kernels.verify import shape

_LOGITS_BYTES = 8 << 20
"""Students read as many texts at once as have logits of about this size, which a processor's cache still holds."""
_NOISE_BYTES = 256 << 20
"""Noise of at most this size is kept from writing to reading."""
_CROWDED = 0.75
"""Finished texts leave the batch when no more than this share of it is still being written."""


@dataclass(frozen=True)
class Batch:
    """Texts that are written together."""

    prompts: Sequence[tuple[int, ...]]
    seeds: Tensor
    """Seed of the noise of each text, its 64 bits held in int64 ``[texts]``."""
    limits: Tensor
    """Longest text, prompt included (tokens) ``[texts]``."""
    sampling: Sampling
    """Greedy or coupled; its seed is not used."""

    @property
    def lengths(self) -> Tensor:
        """Tokens of each prompt ``[texts]``."""
        return torch.tensor([len(prompt) for prompt in self.prompts])


@dataclass(frozen=True)
class Paths:
    """What the target alone wrote, with one row per text and one column per emitted token; behind a text's end stands anything."""

    tokens: Tensor
    """``[texts, columns]``."""
    lengths: Tensor
    """Emitted tokens of each text ``[texts]``."""
    entropy_nats: Tensor
    """Entropy of the distribution that the token was chosen from, before temperature ``[texts, columns]``."""
    top1_probability: Tensor
    """Its largest probability ``[texts, columns]``."""
    margin: Tensor
    """Difference of its two largest logits (nats) ``[texts, columns]``."""
    noise: Tensor | None
    """The noise ``[texts, columns, vocab]``, if it is small enough to be kept for the students."""


@dataclass(frozen=True)
class StudentReading:
    """What a student made of paths ``[texts, columns]``."""

    match: Tensor
    """Whether the student would have chosen the path's token."""
    entropy_nats: Tensor
    """Entropy of the student's distribution, before temperature."""
    top1_probability: Tensor
    """Its largest probability."""


def chosen(logits: Tensor, sampling: Sampling, noise: Tensor | None) -> Tensor:
    """Return the tokens ``[rows]`` that ``logits [rows, vocab]`` and the coupled ``noise`` (None when greedy) lead to."""
    if noise is None:
        return logits.argmax(-1)
    return (shape(logits, sampling.temperature, sampling.top_k, sampling.top_p) + noise).argmax(-1)


@torch.inference_mode()
def write_paths(family: Family, batch: Batch) -> Paths:
    """Let the target alone continue all prompts to their ends."""
    model, device = family.target, family.device
    ids, visible = _left_padded(batch.prompts, device)
    lengths, seeds, limits = batch.lengths.to(device), batch.seeds.to(device), batch.limits.to(device)
    ends = torch.tensor(sorted(family.eos_token_ids), device=device)
    cache = RollbackCache(model.model.config.num_hidden_layers)
    longest = int((limits - lengths).max())
    cache.reserve(ids.shape[1] + longest)
    kept = _room_for_noise(family, batch, longest)
    alive = torch.arange(len(ids), device=device)
    steps: list[tuple[Tensor, Tensor, RowStatistics]] = []
    written = torch.zeros(len(ids), dtype=torch.long, device=device)
    while True:
        logits = model.forward_batch(ids, visible, cache, rows=1)[:, 0]
        place = lengths[alive] + len(steps)
        noise = None if batch.sampling.greedy else gumbel(seeds[alive], place, family.vocab)
        if noise is not None and kept is not None:
            kept[alive, len(steps)] = noise
        token = chosen(logits, batch.sampling, noise)
        steps.append((alive, token, entropy(logits)))
        writing = ~torch.isin(token, ends) & (place + 1 < limits[alive])
        unfinished = written[alive] == 0
        written[alive[unfinished & ~writing]] = len(steps)
        going = unfinished & writing
        if not going.any():
            return _collected(steps, written, len(batch.prompts), kept)
        visible = torch.cat([visible, torch.ones_like(visible[:, :1])], dim=1)
        ids = token[:, None]
        if int(going.sum()) <= _CROWDED * len(alive):
            rows = going.nonzero()[:, 0]
            cache.select(rows)
            alive, ids, visible = alive[rows], ids[rows], visible[rows]


def _room_for_noise(family: Family, batch: Batch, columns: int) -> Tensor | None:
    shape = (len(batch.prompts), columns, family.vocab)
    if batch.sampling.greedy or 4 * math.prod(shape) > _NOISE_BYTES:
        return None
    return torch.zeros(shape, device=family.device)


def _collected(steps: list[tuple[Tensor, Tensor, RowStatistics]], written: Tensor, texts: int, noise: Tensor | None) -> Paths:
    """Put the steps, of which late ones cover few texts, into columns."""
    device = written.device
    tokens = torch.zeros((texts, len(steps)), dtype=torch.long, device=device)
    entropy_nats, top1, margin = (torch.zeros((texts, len(steps)), device=device) for _ in range(3))
    for column, (alive, token, seen) in enumerate(steps):
        tokens[alive, column] = token
        entropy_nats[alive, column] = seen.entropy_nats
        top1[alive, column] = seen.top1_probability
        margin[alive, column] = seen.margin
    return Paths(tokens, written, entropy_nats, top1, margin, None if noise is None else noise[:, : len(steps)])


@torch.inference_mode()
def read_paths(family: Family, batch: Batch, paths: Paths) -> dict[str, StudentReading]:
    """Let every student read all texts once, each token predicted from the target's tokens before it."""
    columns = paths.tokens.shape[1]
    together = max(1, _LOGITS_BYTES // (4 * family.vocab * columns))
    parts: dict[str, list[StudentReading]] = {name: [] for name in family.students}
    for rows in torch.arange(len(batch.prompts), device=family.device).split(together):
        noise = _noise(family, batch, rows, columns) if paths.noise is None else paths.noise[rows].flatten(0, 1)
        for name, reading in _readings(family, batch, paths.tokens[rows], rows, noise):
            parts[name].append(reading)
    return {
        name: StudentReading(*(torch.cat([getattr(r, key) for r in readings]) for key in ("match", "entropy_nats", "top1_probability")))
        for name, readings in parts.items()
    }


def _noise(family: Family, batch: Batch, rows: Tensor, columns: int) -> Tensor | None:
    """Return the noise of ``rows`` at every emitted position ``[rows * columns, vocab]``, shared by all students."""
    if batch.sampling.greedy:
        return None
    first, seeds = batch.lengths.to(family.device)[rows], batch.seeds.to(family.device)[rows]
    places = first[:, None] + torch.arange(columns, device=family.device)
    return gumbel(seeds[:, None].expand(-1, columns).reshape(-1), places.reshape(-1), family.vocab)


def _readings(family: Family, batch: Batch, tokens: Tensor, rows: Tensor, noise: Tensor | None) -> Iterator[tuple[str, StudentReading]]:
    columns = tokens.shape[1]
    prompt_ids, visible = _left_padded([batch.prompts[row] for row in rows.tolist()], family.device)
    ids = torch.cat([prompt_ids, tokens[:, :-1]], dim=1)
    visible = torch.cat([visible, torch.ones_like(tokens[:, :-1])], dim=1)
    places = visible.cumsum(-1)[:, -columns:] - 1
    for name, student in family.students.items():
        logits = student.forward_batch(ids, visible, None, rows=columns).flatten(0, 1)
        seen = entropy(logits)
        match = chosen(logits, batch.sampling, noise).view_as(tokens) == tokens
        within = places < student.context_limit
        yield name, StudentReading(match & within, seen.entropy_nats.view_as(tokens), seen.top1_probability.view_as(tokens))


def _left_padded(prompts: Sequence[tuple[int, ...]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return token ids ``[texts, longest]`` and which of them are real (1 or 0)."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    visible = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    return ids, visible
