"""The self-check of captured passes: it finds graphs that do something else before they are used, and decoding goes on without them."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from dispatch_rl.decoding import graphs
from dispatch_rl.decoding.arms import Arm
from dispatch_rl.decoding.checking import GraphDiffers, check_pass
from dispatch_rl.decoding.families import Family
from dispatch_rl.decoding.fused import FusedForward
from dispatch_rl.decoding.graphs import _does, capture_graphs
from dispatch_rl.decoding.models import CachedModel
from dispatch_rl.decoding.programs import Pass, Programs
from dispatch_rl.decoding.sampling import Sampling
from dispatch_rl.decoding.static import Choice, Inputs, Told
from dispatch_rl.kernels.verify import Rule
from tests.families import llama, qwen2
from tests.statics import CAPTURABLE, again, attention, decode, outline
from tests.tape import Tape, Tapes

ARMS = (Arm("tiny", 3), Arm("tiny", 3, hedge_below=3.0))
GREEDY, COUPLED = Rule(), Rule("coupled")


def _attention(change: Callable[..., tuple[Any, ...]]) -> Callable[[pytest.MonkeyPatch], None]:
    def wrong(q: Tensor, keys: Tensor, values: Tensor, length: Tensor, visible: Tensor | None = None) -> Tensor:
        return attention(q, keys, values, *change(length, visible))

    return lambda patch: patch.setattr(graphs, "operations", lambda device: replace(CAPTURABLE, attention=wrong))


def _static(change: Callable[..., tuple[Any, ...]]) -> Callable[[pytest.MonkeyPatch], None]:
    right = FusedForward.static
    return lambda patch: patch.setattr(FusedForward, "static", lambda self, *given: right(self, *change(self, *given)))


def _write(change: Callable[..., tuple[Any, ...]]) -> Callable[[pytest.MonkeyPatch], None]:
    right = Inputs.write
    return lambda patch: patch.setattr(Inputs, "write", lambda self, *given: right(self, *(change(*given) if len(given) > 3 else given)))


def _moving(wrong: Callable[[Inputs, Tensor, int], None]) -> Callable[[pytest.MonkeyPatch], None]:
    return lambda patch: patch.setattr(Inputs, "move_on", wrong)


def _stands_still(self: Inputs, token: Tensor, size: int) -> None:
    self._packed[:3].add_(1)
    self.tokens[:1].copy_(token)


def _forgets_the_token(self: Inputs, token: Tensor, size: int) -> None:
    if size > 1:
        self.start.add_(self.row)
        self.row.zero_()
    self._packed[:3].add_(1)


def _turned(model: FusedForward, tokens: Tensor, angles: tuple[Tensor, Tensor], places: Any, row: Any) -> tuple[Any, ...]:
    """The angles are those of the positions behind the right ones."""
    cos, sin = (angle.index_select(0, places[0].where + 1) for angle in model.angles)
    return tokens, (cos, sin), places, row


def _of_the_host(model: FusedForward, tokens: Tensor, angles: tuple[Tensor, Tensor], places: Any, row: Any) -> tuple[Any, ...]:
    """The host's positions are baked into the pass: right where it was captured, and nowhere else."""
    cos, sin = (angle[: len(tokens)] for angle in model.angles)
    return tokens, (cos, sin), places, row


def _before(row: Tensor | None) -> Tensor | None:
    return None if row is None else (row - 1).clamp(min=0)


FAULTS: dict[str, tuple[str, Callable[[pytest.MonkeyPatch], None]]] = {
    "length one too long": ("target runs", _attention(lambda length, visible: (length + 1, visible))),
    "length one too short": ("target runs", _attention(lambda length, visible: (length - 1, visible))),
    "second choices see the draft": ("target runs", _attention(lambda length, visible: (length, None))),
    "positions one too far": ("target runs", _static(_turned)),
    "positions of the host": ("target runs", _static(_of_the_host)),
    "second choices stand behind the draft": (
        "target runs",
        _write(lambda start, told, known, more, beside, drafted: (start, told, known, more, (), drafted)),
    ),
    "cache begins one too late": ("target runs", _write(lambda start, *rest: (start + 1, *rest))),
    "row before the last": ("tiny runs", _static(lambda model, *given: (*given[:3], _before(given[3])))),
    "draft stands still": ("tiny chooses tokens (greedy)", _moving(_stands_still)),
    "draft forgets its token": ("tiny chooses tokens (greedy)", _moving(_forgets_the_token)),
    "noise of another position": (
        "tiny chooses tokens (coupled)",
        _write(lambda start, told, *rest: (start, told._replace(position=told.position + 1), *rest)),
    ),
    "noise of another seed": (
        "target judges tokens (coupled)",
        _write(lambda start, told, *rest: (start, told._replace(seed=told.seed + 1), *rest)),
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_graph_that_does_something_else_is_found_before_it_is_used(other: Family, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model is named, what is wrong is done operation by operation, and the text stays what it was."""
    lost, break_it = FAULTS[fault]
    monkeypatch.setattr(graphs, "operations", lambda device: CAPTURABLE)
    monkeypatch.setattr(graphs, "SIZES", (1, 4, 8))
    break_it(monkeypatch)
    family = again(other, Tapes())
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        capture_graphs(family, ARMS, tell=lambda line: None)
    told = [str(w.message) for w in found]
    assert any(line.startswith(f"{lost} without CUDA graphs") and "GraphDiffers" in line for line in told), told
    name, does, *_ = lost.split()
    programs = (family.target if name == "target" else family.students[name]).programs
    if does == "runs":
        assert programs is None
    else:
        assert programs is not None
        assert all(_does(what.then) not in lost for what in programs.captured)
    monkeypatch.undo()
    for arm in ARMS:
        plain = decode(other, [5, 6, 7], Sampling(1.0, seed=1), 24, lambda s, arm=arm: s.step(arm))  # type: ignore[misc]
        assert outline(decode(family, [5, 6, 7], Sampling(1.0, seed=1), 24, lambda s, arm=arm: s.step(arm))) == outline(plain)  # type: ignore[misc]


def test_what_is_captured_is_checked(other: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that the tests of faults break is broken: the same passes pass."""
    monkeypatch.setattr(graphs, "operations", lambda device: CAPTURABLE)
    monkeypatch.setattr(graphs, "SIZES", (1, 4, 8))
    family = again(other, Tapes())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        capture_graphs(family, ARMS, tell=lambda line: None)
    assert all(isinstance(model.programs, Programs) for model in (family.target, family.students["tiny"]))
    assert family.target.length == 0


@pytest.mark.parametrize("wrong", [False, True])
def test_rounding_of_bfloat16_is_no_difference(other: Family, wrong: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention in another precision stays within the bound, and one that forgets a token does not."""

    def rounded(q: Tensor, keys: Tensor, values: Tensor, length: Tensor, visible: Tensor | None = None) -> Tensor:
        return attention(q.float(), keys.float(), values.float(), length - int(wrong), visible).bfloat16()

    monkeypatch.setattr(graphs, "operations", lambda device: replace(CAPTURABLE, attention=rounded))
    monkeypatch.setattr(graphs, "SIZES", (1, 4, 8))
    models = {"target": llama(320, 32, 3, seed=1), "tiny": qwen2(320, 16, 1, seed=2)}
    target, tiny = (CachedModel(model.bfloat16().eval().requires_grad_(False), 320) for model in models.values())
    family = replace(other, target=target, students={"tiny": tiny}, vocab=320, capturer=Tapes())
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        capture_graphs(family, ARMS, tell=lambda line: None)
    assert [str(w.message).partition(" without")[0] for w in found] == (["target runs", "tiny runs"] if wrong else [])


@pytest.fixture(scope="module")
def two_layers() -> Family:
    """Two models of two layers, the second seeing what the first has read, with everything captured on tapes."""
    models = {"target": llama(64, 16, 2, seed=1, context=300), "tiny": qwen2(64, 16, 2, seed=2, context=300)}
    target, tiny = (CachedModel(model.eval().requires_grad_(False), 64) for model in models.values())
    family = Family(target, {"tiny": tiny}, None, 64, 300, frozenset(), torch.device("cpu"), capturer=Tapes())  # type: ignore[arg-type]
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("error")
        patch.setattr(graphs, "operations", lambda device: CAPTURABLE)
        patch.setattr(graphs, "SIZES", (1, 4))
        capture_graphs(family, ARMS, tell=lambda line: None)
    return family


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("target", Pass(4, GREEDY)),
        ("target", Pass(4, COUPLED)),
        ("tiny", Pass(4, Choice(GREEDY))),
        ("tiny", Pass(4, Choice(COUPLED, watched=True))),
        ("tiny", Pass(4, Choice(GREEDY), 3)),
    ],
    ids=str,
)
def test_whatever_a_graph_forgets_is_found_or_does_not_matter(two_layers: Family, name: str, what: Pass) -> None:
    """One operation after the other is left out of a tape; where the check sees nothing, everything that is told later is the same."""
    model = two_layers.target if name == "target" else two_layers.students[name]
    programs = model.programs
    assert programs is not None
    tape = programs._programs[what]
    assert isinstance(tape, Tape)
    steps, found = list(tape.steps), 0
    expected = [_told(model, programs, what, seed) for seed in range(3)]
    for left_out in range(len(steps)):
        # What the operation made is what it was at the capture.
        tape.steps = steps
        model.roll_back(0)
        with torch.inference_mode():
            programs.run(what, Told(), [0] * what.size)
        tape.steps = steps[:left_out] + steps[left_out + 1 :]
        try:
            check_pass(model, programs, what, CAPTURABLE)
        except GraphDiffers:
            found += 1
        else:
            assert [_told(model, programs, what, seed) for seed in range(3)] == expected, (left_out, steps[left_out][:2])
    tape.steps = steps
    assert found > len(steps) / 3


@torch.inference_mode()
def _told(model: CachedModel, programs: Programs, what: Pass, seed: int) -> list[int]:
    """Return the tokens that a pass tells of behind a random text, the target's own draft among them."""
    generator = torch.Generator().manual_seed(1000 + seed)
    past, drafted = 20 + 31 * seed, what.size - 1 if programs.passes.judges else 0
    text = torch.randint(model.vocab, (past + what.size,), generator=generator).tolist()
    model.roll_back(0)
    model.eager(torch.tensor(text[:past]))
    told = Told(past + what.size - drafted, seed, seed, 77 + seed, 0.5 + seed)
    programs.run(what, told, text[past:], (), (), drafted)
    if programs.passes.judges:
        return programs.passes.report[:2].tolist()
    return [*programs.passes.record[told.slot : told.slot + what.steps, 1].tolist(), *programs.passes.inputs.moving.tolist()]
