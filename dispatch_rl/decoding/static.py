"""Forward passes, choices and judgements over fixed buffers: everything that differs from one to the next is read on the device.

One copy of a few integers to the device says where a pass begins, what it reads and how tokens are chosen. A drafted token goes into the
inputs of the next step, and the inputs move on by one, so that the steps of a draft follow each other without the host.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from struct import pack, unpack
from typing import NamedTuple

import torch
from torch import Tensor

from dispatch_rl.decoding.cache import StackedCache, StaticPlace
from dispatch_rl.decoding.clearness import entropies_nats, two_best
from dispatch_rl.decoding.fused import FusedForward
from dispatch_rl.kernels.noise import Stream, to_gumbel
from dispatch_rl.kernels.operations import Operations
from dispatch_rl.kernels.verify import HEADER, Rule, Turn, Verified, shape

MOST = 60
"""Most tokens of a captured pass: what :mod:`dispatch_rl.kernels.attention_triton` takes, and not quite."""
SLOTS = 256
"""Longest draft whose choices are kept (tokens)."""
_START, _POSITION, _SLOT, _ROW, _DRAW, _DRAFTED, _SEED, _TEMPERATURE, _PLACES = range(9)
_TOKENS = _PLACES + MOST


@dataclass(frozen=True)
class Choice:
    """How a student's token is chosen behind its forward pass, in the same graph."""

    rule: Rule
    watched: bool = False
    """Whether it also tells how clear the choice is."""


class Told(NamedTuple):
    """What a sampler tells of the tokens that are to be chosen or judged."""

    position: int = 0
    """Position of the first."""
    slot: int = 0
    """How many tokens were drafted before it in this round."""
    draw: int = 0
    """Number of the round."""
    seed: int = 0
    """Seed of the noise, its 64 bits as a signed number."""
    temperature: float = 1.0

    def after(self, tokens: int) -> "Told":
        """Return what is told so many tokens later."""
        return self._replace(position=self.position + tokens, slot=self.slot + tokens)


class Inputs:
    """What a pass reads, in one piece, so that one copy brings it to the device."""

    def __init__(self, device: torch.device) -> None:
        self._packed = torch.zeros(_TOKENS + MOST, dtype=torch.int64, device=device)
        self.start = self._packed[_START : _START + 1]
        """Tokens that the cache holds ``[1]``."""
        self.row = self._packed[_ROW : _ROW + 1]
        """Which of the tokens is the last real one ``[1]``."""
        self.slot = self._packed[_SLOT : _SLOT + 1]
        """Where the choice is kept ``[1]``."""
        self.moving = self._packed[: _ROW + 1]
        """What moves on behind a chosen token: where it is read, its position, its place in the draft, and the row ``[4]``."""
        self.tokens = self._packed[_TOKENS:]
        """Token ids; those behind the real ones are filling."""
        self.places = self._packed[_PLACES:_TOKENS]
        """In place of which token each of them stands: itself, or a draft token whose alternative it is."""
        position, draw, drafted, seed = (self._packed[i] for i in (_POSITION, _DRAW, _DRAFTED, _SEED))
        self.turn = Turn(seed, position, draw, drafted, self._packed[_TEMPERATURE : _TEMPERATURE + 1].view(torch.float32)[0])

    def write(
        self, start: int, told: Told, known: Sequence[int], more: Sequence[Tensor] = (), beside: Sequence[int] = (), drafted: int = 0
    ) -> None:
        """Say what is read: ``known`` token ids and behind them ``more``, which are on the device.

        Args:
            start: Tokens that the cache holds.
            told: Of what is chosen.
            known: Token ids.
            more: Further token ids ``[tokens]``.
            beside: In place of which tokens the last of them stand.
            drafted: Draft tokens among them, for the judgement.
        """
        temperature = unpack("<i", pack("<f", told.temperature))[0]
        real = len(known) + sum(map(len, more))
        places = (*range(real - len(beside)), *beside, *range(real, MOST))
        numbers = [start, told.position, told.slot, real - 1, told.draw, drafted, told.seed, temperature, *places, *known]
        # From memory that is not pinned: the copy has left it when this returns, so the next one cannot overtake it.
        self._packed[: len(numbers)].copy_(torch.tensor(numbers), non_blocking=True)
        if more:
            torch.cat(list(more), out=self.tokens[len(known) : real])

    def move_on(self, token: Tensor, size: int) -> None:
        """Make ``token [1]`` what is read next, behind the up to ``size`` tokens that were read."""
        if size > 1:
            self.start.add_(self.row)
            self.row.zero_()
        self._packed[: _SLOT + 1].add_(1)
        self.tokens[:1].copy_(token)


class StaticPasses:
    """What the graphs of one model do.

    Args:
        fused: Its forward pass.
        cache: Its cache, whose buffer stays where it is.
        vocab: Logits are cut to this.
        operations: Of the device.
        judges: Whether it is a target, which returns the logits of all tokens and reads alternatives beside the draft.
    """

    def __init__(self, fused: FusedForward, cache: StackedCache, vocab: int, operations: Operations, judges: bool) -> None:
        self.buffer = cache.allocate()
        """The cache's."""
        self.judges = judges
        device = self.buffer.device
        self.inputs = Inputs(device)
        self.logits = torch.zeros((MOST if judges else 1, vocab), dtype=self.buffer.dtype, device=device)
        """Of the last pass; every pass overwrites them."""
        self.record = torch.zeros((SLOTS, HEADER + 3), dtype=torch.int64, device=device)
        """What was chosen for each token of a draft, as :class:`Verified` of one row packs it; the arm's place holds the second choice."""
        self.report = torch.zeros(HEADER + 4 * MOST, dtype=torch.int64, device=device)
        """What was judged, as :class:`Verified` packs it, and behind it the tokens that were read."""
        self._fused, self._vocab, self._operations = fused, vocab, operations
        # Held here: the model makes others when it reads longer texts elsewhere, and a graph goes on reading these.
        self._cos, self._sin = fused.angles
        self._count = torch.arange(MOST, device=device)
        self._itself = torch.eye(MOST, dtype=torch.bool, device=device)

    def read(self, size: int) -> None:
        """Read ``size`` tokens into the cache and leave the logits."""
        inputs, count = self.inputs, self._count[:size]
        where = inputs.start + count
        positions, visible = where, None
        if self.judges and size > 1:
            places = inputs.places[:size]
            positions, visible = inputs.start + places, (count < places[:, None]) | self._itself[:size, :size]
        length = (inputs.start + size)[0]
        layers = [StaticPlace(layer[0], where, length, visible, self._operations) for layer in self.buffer]
        row = None if self.judges or size == 1 else inputs.row
        angles = self._cos.index_select(0, positions), self._sin.index_select(0, positions)
        logits = self._fused.static(inputs.tokens[:size], angles, layers, row)
        self.logits[: len(logits)].copy_(logits[:, : self._vocab])

    def draft(self, size: int, choice: Choice, steps: int = 1) -> None:
        """Read ``size`` tokens, choose the next, and so on for ``steps`` tokens."""
        for step in range(steps):
            read = size if step == 0 else 1
            self.read(read)
            found = choose(self.logits, self.inputs.turn, choice, self._operations)
            self.record.index_copy_(0, self.inputs.slot, found.packed[None])
            self.inputs.move_on(found.packed[1:2], read)

    def judge(self, size: int, rule: Rule) -> None:
        """Read ``size`` tokens, the last of the text and a draft behind it, and judge the draft."""
        self.read(size)
        found = self._operations.verify(self.logits[:size], self.inputs.tokens[1:size], self.inputs.turn, rule)
        end = HEADER + 3 * size
        self.report[:end].copy_(found.packed)
        self.report[end : end + size].copy_(self.inputs.tokens[:size])


def choose(logits: Tensor, turn: Turn, choice: Choice, operations: Operations) -> Verified:
    """Return what a student chooses from its ``logits [1, vocab]``, as what follows a draft of no tokens; the arm is its second choice."""
    rule, nothing = choice.rule, logits.new_empty(0, dtype=torch.int64)
    if not choice.watched:
        return operations.verify(logits, nothing, turn, rule)
    none, scores = torch.zeros_like(turn.draw).view(1), logits
    if rule.method != "greedy":
        shaped = shape(logits, turn.temperature, rule.top_k, rule.top_p)
        uniforms = operations.uniform(turn.seed.view(1), turn.position.view(1), logits.shape[1], Stream.TOKEN, none)
        scores = shaped + to_gumbel(uniforms)
    margin, second = two_best(scores)
    token, zero = scores.argmax(-1), torch.zeros_like(margin)
    numbers = torch.cat([entropies_nats(logits), zero, margin, zero]).view(torch.int64)
    return Verified(torch.cat([none, token, second, token, numbers]))
