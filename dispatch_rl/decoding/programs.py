"""The captured passes of one model, and when they serve: which of them fits, what it is told, and what the host then knows."""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from dispatch_rl.decoding.cache import StackedCache
from dispatch_rl.decoding.capturing import Capturer, Program
from dispatch_rl.decoding.static import SLOTS, Choice, StaticPasses, Told
from dispatch_rl.kernels.verify import HEADER, Rule, Verified


class Pass(NamedTuple):
    """What one graph holds."""

    size: int
    """Tokens that are read."""
    then: Choice | Rule | None = None
    """How a student's token is chosen, or how a target judges; None leaves the logits."""
    steps: int = 1
    """Tokens that are chosen, each read before the next."""

    def __str__(self) -> str:
        return f"{self.size} tokens" + (f" and {self.steps - 1} draft steps" if self.steps > 1 else "")


class Chosen(NamedTuple):
    """A token that a graph chose, on the device until the next round."""

    token: Tensor
    """Token id ``[1]``."""
    row: Tensor
    """A :class:`Verified` of one row; the arm's place holds the second choice."""


class Judged(NamedTuple):
    """What a graph found out about a draft, still on the device."""

    logits: Tensor
    """The target's ``[tokens, vocab]``; the next pass overwrites them."""
    report: Tensor
    """A :class:`Verified` of ``size`` rows, and behind it the tokens that were read, filling included."""
    size: int

    def told(self, report: Tensor) -> tuple[Verified, list[int]]:
        """Return what a copy of the report says: the judgement, and the tokens that were read."""
        end = HEADER + 3 * self.size
        return Verified(report[:end]), report[end:].tolist()


class Programs:
    """Runs a model's captured passes. Where none fits, it returns None, and the pass is done operation by operation.

    Args:
        cache: The model's.
        passes: What is captured, over the buffer of that cache.
        capturer: Captures.
        renew: Told what was captured when the cache has grown and lies elsewhere.
    """

    def __init__(self, cache: StackedCache, passes: StaticPasses, capturer: Capturer, renew: Callable[[AbstractSet[Pass]], None]) -> None:
        self.passes = passes
        self.renew = renew
        self._cache = cache
        self._capturer = capturer
        self._programs: dict[Pass, Program] = {}
        self._sizes: dict[tuple[Choice | Rule | None, int], list[int]] = defaultdict(list)
        self._next: tuple[Tensor, int, Told] | None = None
        """The token that the inputs hold, where it belongs, and what was told for what follows it."""

    @property
    def captured(self) -> frozenset[Pass]:
        """What was captured."""
        return frozenset(self._programs)

    def give_up(self, then: Choice | Rule | None) -> None:
        """Let the passes with one way to choose or judge go, all of them if it is None."""
        for what in [what for what in self._programs if then is None or what.then == then]:
            del self._programs[what]
            self._sizes.pop((what.then, what.steps), None)

    @property
    def fits(self) -> bool:
        """Whether the model's cache is still where it was captured."""
        return self._cache.buffer is self.passes.buffer

    @torch.inference_mode()
    def capture(self, what: Pass) -> None:
        """Capture a pass. The cache is emptied, and overwritten at its beginning."""
        self._next = None
        self._cache.length = 0
        self.passes.inputs.write(0, Told(), [0] * what.size)
        self._programs[what] = self._capturer.capture(self._body(what))
        self._sizes[what.then, what.steps] = sorted({*self._sizes[what.then, what.steps], what.size})

    def _body(self, what: Pass) -> Callable[[], None]:
        if isinstance(what.then, Choice):
            return partial(self.passes.draft, what.size, what.then, what.steps)
        if isinstance(what.then, Rule):
            return partial(self.passes.judge, what.size, what.then)
        return partial(self.passes.read, what.size)

    @torch.inference_mode()
    def forward(self, tokens: Tensor, rows: int | None, beside: Sequence[int]) -> Tensor | None:
        """Do what :meth:`CachedModel.forward` does."""
        new = len(tokens)
        what = self._fitting(new, None)
        if what is None or (not self.passes.judges and (beside or rows != 1)):
            return None
        self.run(what, Told(), [], [tokens], beside)
        self._cache.lengthen(new)
        last = new if self.passes.judges else 1
        return self.passes.logits[0 if rows is None else last - rows : last].clone()

    @torch.inference_mode()
    def draft(self, choice: Choice, told: Told, behind: Sequence[int], unread: Sequence[Tensor], steps: int = 1) -> list[Chosen] | None:
        """Read what a student has not read and choose the next tokens, without waiting for them.

        Args:
            choice: How.
            told: Of the first token.
            behind: Tokens of the text that it has not read.
            unread: Draft tokens behind them that it has not read ``[1]``.
            steps: How many tokens are chosen.
        """
        new = len(behind) + len(unread)
        what = self._fitting(new, choice, steps)
        if told.slot + steps > SLOTS:
            return None
        if what is None and steps > 1:
            return self._step_by_step(choice, told, behind, unread, steps)
        if what is None:
            return None
        if behind or len(unread) != 1 or not self._holds(unread[0], told):
            self.run(what, told, behind, unread)
        else:
            self.replay(what)
        self._cache.lengthen(new + steps - 1)
        rows = self.passes.record[told.slot : told.slot + steps].unbind(0)
        chosen = [Chosen(row[1:2], row) for row in rows]
        self._next = chosen[-1].token, self._cache.length, told.after(steps)
        return chosen

    @torch.inference_mode()
    def judge(self, rule: Rule, told: Told, last: int, drafted: Sequence[Tensor], hedges: Mapping[int, Tensor]) -> Judged | None:
        """Let a target read the ``last`` token of the text, the tokens ``drafted [1]`` behind it and second choices, and judge.

        Args:
            rule: How.
            told: Of the first draft token.
            last: Token id.
            drafted: Draft tokens.
            hedges: Second choices by the number of the draft token beside which they stand.
        """
        new = 1 + len(drafted) + len(hedges)
        what = self._fitting(new, rule)
        if what is None:
            return None
        self.run(what, told, [last], [*drafted, *hedges.values()], [i + 1 for i in hedges], len(drafted))
        self._cache.lengthen(new)
        return Judged(self.passes.logits, self.passes.report[: HEADER + 4 * what.size], what.size)

    def _step_by_step(self, choice: Choice, told: Told, behind: Sequence[int], unread: Sequence[Tensor], steps: int) -> list[Chosen] | None:
        """Choose ``steps`` tokens by a graph for each."""
        first = self._fitting(len(behind) + len(unread), choice)
        if first is None or Pass(1, choice) not in self._programs or not self._room(first.size + steps - 1):
            return None
        chosen: list[Chosen] = []
        for step in range(steps):
            found = self.draft(choice, told.after(step), behind, unread)
            assert found is not None
            chosen += found
            behind, unread = [], [found[0].token]
        return chosen

    def _holds(self, token: Tensor, told: Told) -> bool:
        """Whether the inputs hold this ``token`` at the end of the cache, and what is ``told``, as the last step left them."""
        return self._next is not None and self._next[0] is token and self._next[1:] == (self._cache.length, told)

    def _fitting(self, tokens: int, then: Choice | Rule | None, steps: int = 1) -> Pass | None:
        """Return the smallest captured pass that takes so many ``tokens``."""
        if tokens < 1:
            return None
        sizes = self._sizes.get((then, steps), [])
        place = bisect_left(sizes, tokens)
        if place == len(sizes) or not self.fits or not self._room(sizes[place] + steps - 1):
            return None
        return Pass(sizes[place], then, steps)

    def _room(self, new: int) -> bool:
        """Whether the cache has room for so many tokens: a graph would write beyond it."""
        return self._cache.length + new <= self._cache.capacity

    def run(
        self, what: Pass, told: Told, known: Sequence[int], more: Sequence[Tensor] = (), beside: Sequence[int] = (), drafted: int = 0
    ) -> None:
        """Tell the inputs everything and replay ``what``; the host's length of the cache stays as it is.

        Args:
            what: It was captured, takes these tokens, and the cache has room for all that it writes.
            told: Of what is chosen or judged.
            known: Token ids.
            more: Further token ids behind them, on the device ``[tokens]``.
            beside: As for :meth:`CachedModel.forward`.
            drafted: Draft tokens among them, for the judgement.
        """
        self._next = None
        self.passes.inputs.write(self._cache.length, told, known, more, beside, drafted)
        self.replay(what)

    def replay(self, what: Pass) -> None:
        """Replay a captured pass with what the inputs hold."""
        self._programs[what].replay()
