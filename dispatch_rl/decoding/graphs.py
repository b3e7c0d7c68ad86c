"""Which passes of a family are captured for some arms: shown, checked against the eager path, and given up where they differ."""

import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from time import perf_counter

import torch

from dispatch_rl.decoding.arms import Arm
from dispatch_rl.decoding.cache import StackedCache
from dispatch_rl.decoding.capturing import Capturer
from dispatch_rl.decoding.checking import check_pass
from dispatch_rl.decoding.device_sampling import rule_of
from dispatch_rl.decoding.families import Family
from dispatch_rl.decoding.memory import USUAL_CONTEXT
from dispatch_rl.decoding.models import CachedModel
from dispatch_rl.decoding.programs import Pass, Programs
from dispatch_rl.decoding.sampling import Sampling
from dispatch_rl.decoding.static import MOST, Choice, StaticPasses
from dispatch_rl.errors import first_line
from dispatch_rl.kernels.operations import operations
from dispatch_rl.kernels.verify import Rule

SIZES = (1, 2, 4, 8, 16, 32, MOST)
"""Query lengths that are captured (tokens). What lies between is filled up: while the weights take most of the time, that costs little."""
_AT_ONCE = 8
"""Catch-ups up to this length (tokens) share a graph with the whole draft of an arm."""
_ROOM = 256
"""Positions behind a text, for second choices and filling (tokens)."""
USUAL = (Sampling(), Sampling(temperature=1.0))
"""Graphs keep the method of sampling, and neither temperature nor seed."""


class GraphWarning(UserWarning):
    """A model runs without CUDA graphs, though they were asked for."""


def say(line: str) -> None:
    """Tell somebody who waits."""
    print(line, file=sys.stderr, flush=True)


def capture_graphs(
    family: Family, arms: Sequence[Arm], samplings: Iterable[Sampling] = (), clarity: bool = False, tell: Callable[[str], None] = say
) -> None:
    """Capture the passes that ``arms`` need, if the family captures any; what was captured before stays.

    A model whose graphs cannot be captured, or do not do what its eager passes do, runs without, after one :class:`GraphWarning`. If that
    is so of one way to choose tokens only, then only that is done operation by operation.

    Args:
        family: The models.
        arms: The arms.
        samplings: How tokens are chosen, besides greedily and by plain coupled sampling.
        clarity: Whether drafts are dispatched token by token, students telling of every token how sure they are.
        tell: Told in a line what was done for each model.
    """
    if family.capturer is None:
        return
    rules = {rule_of(sampling) for sampling in (*USUAL, *samplings) if sampling.greedy or sampling.method != "rejection"}
    family.target.reader = None  # whoever decodes reads its text again
    for name, model in _named(family):
        own = [arm for arm in arms if arm.student == name]
        if model is family.target:
            _Capture(name, model, family, tell).run(target_passes(arms, rules))
        elif own:
            _Capture(name, model, family, tell).run(student_passes(own, rules, clarity))


def describe_graphs(family: Family) -> str:
    """Return in a line which models run through graphs."""
    if family.capturer is None:
        return "none: they need a GPU, Triton and family.graphs=true"
    counts = {name: len(model.programs.captured) if model.programs else 0 for name, model in _named(family)}
    return ", ".join(f"{name} {count or 'none'}" for name, count in counts.items())


def _named(family: Family) -> Iterator[tuple[str, CachedModel]]:
    yield "target", family.target
    yield from family.students.items()


def target_passes(arms: Sequence[Arm], rules: Iterable[Rule]) -> set[Pass]:
    """Return what verifies the drafts of ``arms``: exactly as long as theirs, and filled up if they ended early."""
    exact = {arm.length + 1 for arm in arms}
    longest = max(arm.length * (2 if arm.hedge_below is not None else 1) + 1 for arm in arms)
    sizes = {size for size in exact if size <= MOST} | _up_to(longest)
    return {Pass(size, then) for size in sizes for then in (None, *rules)}


def student_passes(arms: Sequence[Arm], rules: Iterable[Rule], clarity: bool) -> set[Pass]:
    """Return what a student drafts with: its catch-ups with a token behind each, or with the whole draft of an arm."""
    watched = clarity or any(arm.watches for arm in arms)
    choices = [Choice(rule, look) for rule in rules for look in ((False, True) if watched else (False,))]
    steps = {Pass(size, then) for size in SIZES for then in (None, *choices)}
    whole = {arm.length for arm in arms if not (clarity or arm.watches) and 1 < arm.length <= MOST}
    return steps | {Pass(size, Choice(rule), k) for size in _up_to(_AT_ONCE) for rule in rules for k in whole}


def _does(then: Choice | Rule | None) -> str:
    """Return in words what is done behind a pass."""
    if then is None:
        return "runs"
    rule, look = (then.rule, then.watched) if isinstance(then, Choice) else (then, False)
    filters = "".join(f", {name} {value:g}" for name, value in (("top-k", rule.top_k), ("top-p", rule.top_p)) if value is not None)
    return f"{'chooses' if isinstance(then, Choice) else 'judges'} tokens ({rule.method}{filters}{', watched' if look else ''})"


def _up_to(longest: int) -> set[int]:
    """Return the sizes that take anything up to ``longest``, as far as there are any."""
    return {size for size, below in zip(SIZES, (0, *SIZES), strict=False) if below < longest}


@dataclass(frozen=True)
class _Capture:
    """Captures the passes of one model."""

    name: str
    model: CachedModel
    family: Family
    tell: Callable[[str], None]

    def run(self, wanted: AbstractSet[Pass]) -> None:
        """Capture what is not captured yet, and check it."""
        model, capturer = self.model, self.family.capturer
        if capturer is None or not model.can_capture:
            return
        began, before = perf_counter(), _allocated(model.device)
        programs, model.programs = model.programs, None
        try:
            programs = programs or self._programs(capturer)
        except Exception as error:  # such as no memory for a cache of the usual size; a text may do with less
            self._refuse(None, error)
            model.cache = model.new_cache()
            return
        missing = {what for what in wanted - programs.captured if what.then not in model.refused}
        # The passes alone come first: without them there is no choice either.
        for then in sorted({what.then for what in missing}, key=lambda then: (then is not None, str(then))):
            if model.can_capture:
                self._try(programs, [what for what in missing if what.then == then])
        model.roll_back(0)
        model.programs = programs if model.can_capture else None
        if done := len(missing & programs.captured):
            size = (_allocated(model.device) - before) / 2**20
            self.tell(f"CUDA graphs of {self.name}: {done} captured in {perf_counter() - began:.1f} s, {size:.0f} MiB")

    def _try(self, programs: Programs, passes: Sequence[Pass]) -> None:
        """Capture and check passes that end in the same way; if one fails, all of them are given up."""
        # From large to small, so that what one needs has room where another had its own; drafts are compared with their single steps.
        for what in sorted(passes, key=lambda what: (what.steps > 1, -what.size, what.steps)):
            try:
                programs.capture(what)
                check_pass(self.model, programs, what, operations(self.model.device))
            except Exception as error:  # of whatever kind: the eager path is always there
                programs.give_up(what.then)
                self._refuse(what.then, error, f"{what}: ")
                return

    def _refuse(self, then: Choice | Rule | None, error: Exception, where: str = "") -> None:
        """Tell in one line what is done without graphs from now on."""
        self.model.refused.add(then)
        reason = f"{where}{type(error).__name__}: {first_line(error)}"
        warnings.warn(f"{self.name} {_does(then)} without CUDA graphs ({reason})", GraphWarning, stacklevel=5)

    def _programs(self, capturer: Capturer) -> Programs:
        """Return what will hold the model's passes, with room for a usual text."""
        model = self.model
        model.start(min(self.family.context_limit, USUAL_CONTEXT) + _ROOM)
        assert model.fused is not None
        assert isinstance(model.cache, StackedCache)
        judges = model is self.family.target
        passes = StaticPasses(model.fused, model.cache, model.vocab, operations(model.device), judges)
        return Programs(model.cache, passes, capturer, self.run)


def _allocated(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
