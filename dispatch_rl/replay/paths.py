"""The target's own texts, many at a time, and what the students would have chosen along them.

A batch stands in columns: the prompts end in the same column (filled up on their left), the paths follow (filled up on their right).
Noise, temperature, top-k and top-p are those of live decoding, so the texts are those of live decoding.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dispatch_rl.decoding.clearness import two_best
from dispatch_rl.decoding.families import Family
from dispatch_rl.decoding.sampling import Sampling
from dispatch_rl.kernels.entropy import RowStatistics
from dispatch_rl.kernels.noise import gumbel
from dispatch_rl.kernels.operations import operations
from dispatch_rl.replay.beyond import Choices, Read, continued, scores

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
    margin: Tensor | None = None
    """How clear its choice is: the difference of its two best scores (nats), if that was asked for."""
    second: Tensor | None = None
    """Whether its second choice is the path's token."""
    wrong: Tensor | None = None
    """Text and column of every token that it gets wrong ``[drafts, 2]``, if that was asked for."""
    beyond: Choices | None = None
    """How clear its choices behind each of them are."""


@torch.inference_mode()
def write_paths(family: Family, batch: Batch) -> Paths:
    """Let the target alone continue all prompts to their ends."""
    model, device = family.target, family.device
    entropy = operations(device).entropy
    ids, visible = _left_padded(batch.prompts, device)
    lengths, seeds, limits = batch.lengths.to(device), batch.seeds.to(device), batch.limits.to(device)
    ends = torch.tensor(sorted(family.eos_token_ids), device=device)
    cache = model.new_cache()
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
        token = scores(logits, batch.sampling, noise).argmax(-1)
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
def read_paths(family: Family, batch: Batch, paths: Paths, beyond: int | None = None) -> dict[str, StudentReading]:
    """Let every student read all texts once, each token predicted from the target's tokens before it.

    Args:
        family: The models.
        batch: What was written.
        paths: What was written.
        beyond: Also find how clear the students' choices are, and, behind their wrong tokens, those of so many further ones.
    """
    columns = paths.tokens.shape[1]
    together = max(1, _LOGITS_BYTES // (4 * family.vocab * columns))
    parts: dict[str, list[StudentReading]] = {name: [] for name in family.students}
    for rows in torch.arange(len(batch.prompts), device=family.device).split(together):
        reader = _Reader(family, batch, paths, rows)
        for name in family.students:
            parts[name].append(reader.read(name, beyond))
    return {name: _joined(readings) for name, readings in parts.items()}


def _joined(readings: list[StudentReading]) -> StudentReading:
    """Put the readings of one student over parts of a batch together."""
    match, entropy_nats, top1 = (torch.cat([getattr(r, key) for r in readings]) for key in ("match", "entropy_nats", "top1_probability"))
    found = StudentReading(match, entropy_nats, top1)
    if any(reading.margin is None for reading in readings):
        return found
    wrong, texts = [], 0
    for reading in readings:
        assert reading.wrong is not None
        wrong.append(reading.wrong + torch.tensor([texts, 0], device=reading.wrong.device))
        texts += len(reading.match)
    choices = [reading.beyond for reading in readings if reading.beyond is not None]
    beyond = Choices(*(torch.cat([getattr(choice, key) for choice in choices]) for key in ("margin", "entropy_nats")))
    margin, second = (torch.cat([getattr(r, key) for r in readings]) for key in ("margin", "second"))
    return replace(found, margin=margin, second=second, wrong=torch.cat(wrong), beyond=beyond)


class _Reader:
    """Lets students read some ``rows`` of a batch; they share tokens and noise."""

    def __init__(self, family: Family, batch: Batch, paths: Paths, rows: Tensor) -> None:
        self.family = family
        self.sampling = batch.sampling
        self.tokens = paths.tokens[rows]
        self.columns = self.tokens.shape[1]
        prompt_ids, visible = _left_padded([batch.prompts[row] for row in rows.tolist()], family.device)
        self.ids = torch.cat([prompt_ids, self.tokens[:, :-1]], dim=1)
        self.visible = torch.cat([visible, torch.ones_like(self.tokens[:, :-1])], dim=1)
        self.first, self.seeds = batch.lengths.to(family.device)[rows], batch.seeds.to(family.device)[rows]
        self.inside = torch.arange(self.columns, device=family.device) < paths.lengths[rows, None]
        self._known = None if paths.noise is None else paths.noise[rows]
        self.path_noise = self._path_noise()

    def read(self, name: str, beyond: int | None) -> StudentReading:
        """Let a student read, and go on from its wrong tokens if ``beyond`` says how far."""
        student, tokens = self.family.students[name], self.tokens
        cache = None
        if beyond is not None:
            cache = student.new_cache()
            cache.reserve(self.ids.shape[1])
        logits = student.forward_batch(self.ids, self.visible, cache, rows=self.columns).flatten(0, 1)
        seen = operations(self.family.device).entropy(logits)
        scored = scores(logits, self.sampling, self.path_noise)
        choice = scored.argmax(-1).view_as(tokens)
        within = self.first[:, None] + torch.arange(self.columns, device=tokens.device) <= student.context_limit
        match = (choice == tokens) & within
        found = StudentReading(match, seen.entropy_nats.view_as(tokens), seen.top1_probability.view_as(tokens))
        if cache is None or beyond is None:
            return found
        wrong = (self.inside & within & ~match).nonzero()
        ends = torch.tensor(sorted(self.family.eos_token_ids), device=tokens.device)
        read = Read(cache, self.visible, self.columns, self._noise_at)
        choices = continued(student, read, wrong, choice[wrong[:, 0], wrong[:, 1]], self.sampling, ends, beyond)
        margin, second = (values.view_as(tokens) for values in two_best(scored))
        return replace(found, margin=margin, second=(second == tokens) & within, wrong=wrong, beyond=choices)

    def _path_noise(self) -> Tensor | None:
        """Return the noise at every emitted position ``[rows * columns, vocab]``, shared by all students."""
        if self._known is not None or self.sampling.greedy:
            return None if self._known is None else self._known.flatten(0, 1)
        columns = torch.arange(self.columns, device=self.tokens.device)
        places = self.first[:, None] + columns
        return gumbel(self.seeds[:, None].expand_as(places).reshape(-1), places.reshape(-1), self.family.vocab)

    def _noise_at(self, texts: Tensor, columns: Tensor) -> Tensor | None:
        if self.sampling.greedy:
            return None
        return gumbel(self.seeds[texts], self.first[texts] + columns, self.family.vocab)


def _left_padded(prompts: Sequence[tuple[int, ...]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return token ids ``[texts, longest]`` and which of them are real (1 or 0)."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    visible = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    return ids, visible
