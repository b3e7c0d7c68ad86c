"""What is captured, and what a first user with a GPU is safe from: graphs that fail, and graphs that do something else."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from dispatch_rl import doctor
from dispatch_rl.config import FamilyConfig
from dispatch_rl.decoding import graphs, static
from dispatch_rl.decoding.arms import LOOKUP, NONE, Arm, ArmTable
from dispatch_rl.decoding.capturing import CudaGraphs, Program
from dispatch_rl.decoding.families import Family
from dispatch_rl.decoding.fused import FusedForward
from dispatch_rl.decoding.graphs import GraphWarning, _does, capture_graphs, student_passes, target_passes
from dispatch_rl.decoding.loop import warm_up
from dispatch_rl.decoding.models import CachedModel
from dispatch_rl.decoding.programs import Pass, Programs
from dispatch_rl.decoding.sampling import Sampling
from dispatch_rl.decoding.session import DecodingSession
from dispatch_rl.decoding.static import Choice, Inputs, StaticPasses
from dispatch_rl.kernels.operations import REFERENCES
from dispatch_rl.kernels.verify import Rule
from tests.families import llama, qwen2
from tests.helpers import DEVICE, needs_gpu
from tests.statics import CAPTURABLE, again, attention, capture, on_device
from tests.tape import CaptureError, Reruns, Tapes
from tests.test_lossless import own_text

ARMS = (Arm("tiny", 3), Arm("tiny", 3, hedge_below=3.0))
GREEDY, COUPLED = Rule(), Rule("coupled")


def test_passes_are_those_that_the_arms_need() -> None:
    """By hand: drafts of 5, and of 3 with as many second choices; a student that watches, and one that does not."""
    arms = [Arm("a", 5), Arm("b", 3, hedge_below=1.0), Arm(LOOKUP, 2), Arm(NONE)]
    sizes = {1, 2, 3, 4, 6, 8}  # 0 + 1, 2 + 1, 3 + 1, 5 + 1, and what takes 3 + 3 + 1 and everything below
    assert target_passes(arms, [GREEDY]) == {Pass(size, then) for size in sizes for then in (None, GREEDY)}
    plain, look, every = Choice(GREEDY), Choice(GREEDY, watched=True), (1, 2, 4, 8, 16, 32, 60)
    single = {Pass(size, then) for size in every for then in (None, plain)}
    assert student_passes([arms[0]], [GREEDY], False) == single | {Pass(size, plain, 5) for size in (1, 2, 4, 8)}
    assert student_passes([arms[1]], [GREEDY], False) == single | {Pass(size, look) for size in every}
    assert student_passes([arms[0]], [GREEDY], True) == single | {Pass(size, look) for size in every}


def test_only_students_of_arms_are_captured_and_nothing_twice(other: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """A warm-up tells of each model once; a second one with the same arms does nothing, one with a longer arm what is new."""
    monkeypatch.setattr(graphs, "operations", lambda device: REFERENCES)
    family, lines = again(other, Reruns()), list[str]()
    capture_graphs(family, ARMS, tell=lines.append)
    assert [line.split(":")[0] for line in lines] == ["CUDA graphs of target", "CUDA graphs of tiny"]
    assert family.students["twin"].programs is None
    capture_graphs(family, ARMS, tell=lines.append)
    assert len(lines) == 2
    capture_graphs(family, [*ARMS, Arm("tiny", 5)], [Sampling(0.5)], tell=lines.append)
    assert [line.split(" in ")[0] for line in lines[2:]] == [
        "CUDA graphs of target: 3 captured",  # drafts of 5, unjudged, greedy and coupled
        "CUDA graphs of tiny: 8 captured",  # 4 catch-ups, greedy and coupled
    ]


def test_without_a_capturer_nothing_is_captured(pocket: Family) -> None:
    """On a CPU, warming up is what it was; doctor says so."""
    warm_up(pocket, ArmTable([Arm("small", 2)]))
    assert pocket.capturer is None
    assert all(model.programs is None for model in pocket.models())
    assert graphs.describe_graphs(pocket).startswith("none: ")


class _Late:
    """Captures some passes and then fails, as a device does that is out of memory."""

    def __init__(self, passes: int) -> None:
        self.left = passes

    def capture(self, body: Callable[[], None]) -> Program:
        self.left -= 1
        if self.left == 0:
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB")
        return Reruns().capture(body)


def test_a_model_whose_capture_fails_stays_eager(other: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """One warning with its name and the query length; it is not tried again, the others are captured, and the text is right."""
    monkeypatch.setattr(graphs, "operations", lambda device: REFERENCES)
    family = again(other, _Late(3))
    with pytest.warns(GraphWarning, match=r"^target runs without CUDA graphs \(2 tokens: OutOfMemoryError: CUDA out of memory\.\)$"):
        capture_graphs(family, ARMS, tell=lambda line: None)
    assert family.target.programs is None
    assert family.students["tiny"].programs is not None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        capture_graphs(family, ARMS, tell=lambda line: None)
    assert graphs.describe_graphs(family).startswith("target none, tiny ")
    with on_device(REFERENCES):
        session = DecodingSession(family, [5, 6, 7], Sampling(1.0, seed=1), 40)
    while not session.finished:
        session.step(ARMS[0])
    assert session.text_tokens == own_text(other, [5, 6, 7], session.text_tokens, Sampling(1.0, seed=1))


def test_a_way_to_choose_that_fails_is_given_up_alone(other: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a choice that cannot be captured, passes are captured, and greedy choices; the warning says what is lost."""
    monkeypatch.setattr(static, "shape", lambda logits, *_: logits * (int(logits.argmax()) > 0))
    with pytest.warns(GraphWarning, match=r"^tiny chooses tokens \(coupled, watched\) without CUDA graphs \(60 tokens: CaptureError: "):
        family = capture(other, Tapes(), ARMS)
    programs = family.students["tiny"].programs
    assert programs is not None
    assert {what.then for what in programs.captured} == {None, Choice(GREEDY), Choice(COUPLED), Choice(GREEDY, watched=True)}
    with on_device():
        session = DecodingSession(family, [5, 6, 7], Sampling(1.0, seed=1), 40)
    while not session.finished:
        session.step(ARMS[1])
    assert session.text_tokens == own_text(other, [5, 6, 7], session.text_tokens, Sampling(1.0, seed=1))


def test_what_the_host_reads_cannot_be_captured(other: Family) -> None:
    """The reference of the attention asks for the length; the tape refuses it as a GPU would, and the models stay eager."""
    with pytest.warns(GraphWarning, match=r"\d+ tokens: CaptureError: aten.item"):
        family = capture(other, Tapes(), ARMS, REFERENCES)
    assert all(model.programs is None for model in family.models())
    assert issubclass(CaptureError, RuntimeError)


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
    """The model is named, and what is wrong is done operation by operation."""
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


def test_what_is_captured_is_checked(other: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that the tests of faults break is broken: the same passes pass."""
    monkeypatch.setattr(graphs, "operations", lambda device: CAPTURABLE)
    monkeypatch.setattr(graphs, "SIZES", (1, 4, 8))
    family = again(other, Tapes())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        capture_graphs(family, ARMS, tell=lambda line: None)
    assert all(isinstance(model.programs, Programs) for model in (family.target, family.students["tiny"]))
    assert StaticPasses.read is not None
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


@needs_gpu
def test_real_graphs_are_captured_and_checked(other: Family) -> None:
    """Without a warning, for every arm."""
    family = again(other, CudaGraphs(DEVICE))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        capture_graphs(family, [*ARMS, Arm("twin", 24)])
    assert all(model.programs is not None for model in family.models())


@needs_gpu
def test_doctor_tells_of_graphs(capsys: pytest.CaptureFixture[str]) -> None:
    """One line with the number of each model; none if they are off."""
    doctor.main([])
    assert "graphs             target " in capsys.readouterr().out
    assert FamilyConfig().graphs
    doctor.main(["--family.graphs=false"])
    assert "graphs             none" in capsys.readouterr().out
