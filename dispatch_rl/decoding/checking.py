"""Is what was captured what the eager path does? Asked of every graph before it is used, on short made-up texts."""

import torch
from torch import Tensor

from dispatch_rl.decoding.models import CachedModel
from dispatch_rl.decoding.programs import Pass, Programs
from dispatch_rl.decoding.static import Choice, Told
from dispatch_rl.kernels.operations import Operations
from dispatch_rl.kernels.verify import HEADER, Rule, Turn

BOUNDS = {torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 2e-1}
"""Largest difference of a row, as a share of its length (Euclidean), that may come from rounding in another order."""
_PASTS = (3, 200)
"""Tokens before those that are read: few, so that each counts for much, and more than one tile of the attention."""
_POISONED = 64
"""Positions behind the last that is read which must not be looked at (tokens)."""
_TOLD = Told(seed=5, draw=2, slot=1, temperature=0.75)


class GraphDiffers(Exception):
    """A replay does not do what the eager path does."""


@torch.inference_mode()
def check_pass(model: CachedModel, programs: Programs, what: Pass, operations: Operations) -> None:
    """Compare a captured pass with the eager path: logits, keys and values, and the tokens that were chosen or judged.

    Rows of logits that agree within :data:`BOUNDS` have the same largest entry unless two are within that bound of each other.

    Raises:
        GraphDiffers: They differ.
    """
    for past, new in zip(_PASTS, (what.size // 2 + 1, what.size), strict=True):
        if past + what.size + what.steps <= model.cache.capacity:
            _Comparison(model, programs, what, operations, past, new).run()


class _Comparison:
    def __init__(self, model: CachedModel, programs: Programs, what: Pass, operations: Operations, past: int, new: int) -> None:
        self.model, self.programs, self.what, self.operations, self.past = model, programs, what, operations, past
        self.passes = programs.passes
        generator = torch.Generator().manual_seed(past)
        self.text: list[int] = torch.randint(model.vocab, (past + new,), generator=generator).tolist()
        hedges = (new - 1) // 2 if self.passes.judges else 0
        self.beside = list(range(1, hedges + 1))
        self.drafted = new - 1 - hedges

    def run(self) -> None:
        self.model.roll_back(0)
        self._eager(self.text[: self.past])
        expected = self._eager(self.text[self.past :], self.beside)
        span = slice(self.past, len(self.text))
        written = self.passes.buffer[..., span, :].clone()
        self.model.roll_back(self.past)
        self.passes.buffer[..., self.past : len(self.text) + self.what.steps + _POISONED, :] = torch.nan
        told = _TOLD._replace(position=len(self.text) - len(self.beside) - self.drafted)
        self.programs.run(self.what, told, self.text[self.past :], (), self.beside, self.drafted)
        self._compare("keys and values", self.passes.buffer[..., span, :].flatten(2), written.flatten(2))
        if self.what.steps > 1:
            chosen = self.passes.record[_TOLD.slot : _TOLD.slot + self.what.steps - 1, 1].tolist()
            expected = self._eager([*self.text[self.past :], *chosen])
        logits = self.passes.logits[: len(expected)] if self.passes.judges else self.passes.logits
        self._compare("logits", logits, expected if self.passes.judges else expected[-1:])
        self._compare_tokens(told)

    def _eager(self, tokens: list[int], beside: list[int] | None = None) -> Tensor:
        logits = self.model.eager(torch.tensor(tokens, device=self.model.device), beside=beside or ())
        if len(tokens) != self.past:
            self.model.roll_back(self.past)
        return logits

    def _compare(self, name: str, found: Tensor, expected: Tensor) -> None:
        error = (found - expected).float().norm(dim=-1) / expected.float().norm(dim=-1)
        bound = BOUNDS[self.passes.buffer.dtype]
        if not bool((error <= bound).all()):
            raise GraphDiffers(f"{name} differ from the eager path's by {float(error.amax()):.2g} of their length; {bound:g} is rounding")

    def _compare_tokens(self, told: Told) -> None:
        """Compare what was chosen or judged with the same operation on the same logits."""
        then, rows = self.what.then, self.what.size
        if then is None:
            return
        at = told.position + self.what.steps - 1
        device = self.passes.buffer.device
        turn = Turn.of(torch.tensor([told.seed, at, told.draw, self.drafted], device=device), torch.tensor(told.temperature, device=device))
        if isinstance(then, Rule):
            end, read = HEADER + 3 * rows, self.passes.inputs.tokens[:rows]
            found = self.passes.report[: end + rows]
            judged = torch.cat([self.operations.verify(self.passes.logits[:rows], read[1:], turn, then).packed, read])
            judged[end : end + len(self.text) - self.past] = torch.tensor(self.text[self.past :], device=device)
        else:
            assert isinstance(then, Choice)
            found = self.passes.record[told.slot + self.what.steps - 1, 1:2]
            nothing = torch.empty(0, dtype=torch.int64, device=device)
            judged = self.operations.verify(self.passes.logits, nothing, turn, then.rule).packed[1:2]
        if not torch.equal(found, judged):
            raise GraphDiffers(f"its tokens are {found[:2].tolist()}, the eager path's {judged[:2].tolist()}")
