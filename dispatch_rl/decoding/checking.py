"""Is what was captured what the eager path does? Asked of every graph before it is used, on short made-up texts."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dispatch_rl.decoding.models import CachedModel
from dispatch_rl.decoding.programs import Pass, Programs
from dispatch_rl.decoding.static import Choice, Told, choose
from dispatch_rl.kernels.operations import Operations
from dispatch_rl.kernels.verify import HEADER, Rule, Turn

BOUNDS = {torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 2e-1}
"""Difference of a row, as a share of its length (Euclidean, root mean square over rows), that may come from rounding in another order."""
_WORST = 2.5
"""As many times that may be the worst row's. 16 bits alone make it 0.13 to 0.22 in 64 to 80 layers; an unrelated row's is 1.4."""
_PASTS = (3, 200)
"""Tokens before those that are read: few, so that each counts for much, and more than one tile of the attention."""
_POISONED = 64
"""Positions behind the last that is read which must not be looked at (tokens)."""
_TOLD = Told(seed=5 - 2**62, draw=2, slot=1, temperature=0.75), Told(seed=2**61 + 3, draw=3, slot=2, temperature=20.0)
"""What the two comparisons tell; in the second it is so hot that noise decides."""


class GraphDiffers(Exception):
    """A replay does not do what the eager path does."""


@torch.inference_mode()
def check_pass(model: CachedModel, programs: Programs, what: Pass, operations: Operations) -> None:
    """Compare a captured pass with the eager path: logits, keys and values, and the tokens that were chosen or judged.

    Rows of logits that agree within :data:`BOUNDS` have the same largest entry unless two are within that bound of each other.

    Raises:
        GraphDiffers: They differ.
    """
    for past, new, told in zip(_PASTS, (what.size // 2 + 1, what.size), _TOLD, strict=True):
        if past + what.size + what.steps <= model.cache.capacity:
            _Comparison(model, programs, what, operations, past, new, told).run()


class _Comparison:
    def __init__(self, model: CachedModel, programs: Programs, what: Pass, operations: Operations, past: int, new: int, told: Told) -> None:
        self.model, self.programs, self.what, self.operations, self.past = model, programs, what, operations, past
        self.passes = programs.passes
        generator = torch.Generator().manual_seed(past)
        self.text: list[int] = torch.randint(model.vocab, (past + new,), generator=generator).tolist()
        hedges = (new - 1) // 2 if self.passes.judges else 0
        self.beside = list(range(1, hedges + 1))
        self.drafted = new - 1 - hedges
        self.told = told._replace(position=past + new - hedges - self.drafted)
        self.stand = min(told.slot, self.drafted) if isinstance(what.then, Rule) else 0
        """Leading draft tokens that are the target's own choice, so that some stand."""

    def run(self) -> None:
        self.model.roll_back(0)
        self._eager(self.text[: self.past])
        for place in range(self.past, self.past + self.stand):
            self.text[place + 1] = self._own(self._eager(self.text[self.past : place + 1])[-1:], place + 1 - self.told.position)
        expected = self._eager(self.text[self.past :], self.beside)
        span = slice(self.past, len(self.text))
        written = self.passes.buffer[..., span, :].clone()
        self.model.roll_back(self.past)
        self.passes.buffer[..., self.past : len(self.text) + self.what.steps + _POISONED, :] = torch.nan
        self.programs.run(self.what, self.told, self.text[self.past :], (), self.beside, self.drafted)
        self._compare("keys and values", self.passes.buffer[..., span, :].flatten(2), written.flatten(2))
        if self.what.steps > 1:
            behind = slice(len(self.text), len(self.text) + self.what.steps - 1)
            written = self.passes.buffer[..., behind, :].clone()
            expected = self._eager([*self.text[self.past :], *self._chosen()[:-1, 1].tolist()])
            self._compare("keys and values of the draft", written.flatten(2), self.passes.buffer[..., behind, :].flatten(2))
        logits = self.passes.logits[: len(expected)] if self.passes.judges else self.passes.logits
        self._compare("logits", logits, expected if self.passes.judges else expected[-1:])
        if isinstance(self.what.then, Rule):
            self._compare_judgement(self.what.then)
        elif self.what.then is not None:
            self._compare_choice(self.what.then)

    def _eager(self, tokens: list[int], beside: Sequence[int] = ()) -> Tensor:
        logits = self.model.eager(torch.tensor(tokens, device=self.model.device), beside=beside)
        self.model.roll_back(self.past)
        return logits

    def _own(self, logits: Tensor, after: int) -> int:
        """Return what the target chooses from the ``logits [1, vocab]`` of the token ``after`` the first that is judged."""
        assert isinstance(self.what.then, Rule)
        return int(choose(logits, self._turn(after), Choice(self.what.then), self.operations).following)

    def _turn(self, after: int) -> Turn:
        device, told = self.passes.buffer.device, self.told
        integers = torch.tensor([told.seed, told.position + after, told.draw, self.drafted], device=device)
        return Turn.of(integers, torch.tensor(told.temperature, device=device))

    def _chosen(self) -> Tensor:
        """Return what was told of every chosen token ``[steps, numbers]``."""
        return self.passes.record[self.told.slot : self.told.slot + self.what.steps].clone()

    def _compare(self, name: str, found: Tensor, expected: Tensor) -> None:
        error = (found - expected).float().norm(dim=-1) / expected.float().norm(dim=-1)
        bound = BOUNDS[self.passes.buffer.dtype]
        usual, worst = float(error.square().mean().sqrt()), float(error.amax())
        if not (usual <= bound and worst <= _WORST * bound):
            raise GraphDiffers(
                f"{name}: they differ from the eager path's by {usual:.2g} of their length, {worst:.2g} at worst; "
                f"{bound:g} and {_WORST * bound:g} is rounding"
            )

    def _compare_judgement(self, rule: Rule) -> None:
        """Compare with the same judgement of the same logits."""
        rows, read = self.what.size, self.passes.inputs.tokens[: self.what.size]
        expected = self.operations.verify(self.passes.logits[:rows], read[1:], self._turn(0), rule).packed
        _equal("judgement", self.passes.report[: len(expected)], expected)
        new = self.text[self.past :]
        _equal("tokens", self.passes.report[len(expected) :][: len(new)], torch.tensor(new, device=read.device))

    def _compare_choice(self, choice: Choice) -> None:
        """Compare with the same choice from the same logits; tokens before the last with those that single steps choose."""
        steps, last = self.what.steps, self.told.slot + self.what.steps - 1
        expected = choose(self.passes.logits, self._turn(steps - 1), choice, self.operations).packed
        _equal("choice", self.passes.record[last], expected)
        end = len(self.text) + steps - 1
        moved = torch.tensor([end, self.told.position + steps, last + 1, 0], device=expected.device)
        _equal("next inputs", self.passes.inputs.moving, moved)
        _equal("next token", self.passes.inputs.tokens[:1], expected[1:2])
        if steps > 1:
            whole = self._chosen()
            self.programs.run(Pass(self.what.size, choice), self.told, self.text[self.past :])
            for _ in range(steps - 1):
                self.programs.replay(Pass(1, choice))
            single = self._chosen()
            _equal("draft", whole[:, 1], single[:, 1])
            numbers = (rows[:, HEADER + 1 :].contiguous().view(torch.float32) for rows in (whole, single))
            self._compare("statistics of the draft", *numbers)


def _equal(name: str, found: Tensor, expected: Tensor) -> None:
    if not torch.equal(found, expected):
        raise GraphDiffers(f"{name}: {found[:4].tolist()} and not {expected[:4].tolist()}")
