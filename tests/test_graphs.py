"""What is captured, and what a first user with a GPU is safe from: graphs that fail, and graphs that do something else."""

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dispatch_rl import doctor
from dispatch_rl.config import FamilyConfig, ModelSource
from dispatch_rl.decoding import families, graphs, static
from dispatch_rl.decoding.arms import LOOKUP, NONE, Arm, ArmTable
from dispatch_rl.decoding.cache import StackedCache
from dispatch_rl.decoding.capturing import CudaGraphs, Program
from dispatch_rl.decoding.device_sampling import DeviceSampler
from dispatch_rl.decoding.families import Family
from dispatch_rl.decoding.graphs import GraphWarning, capture_graphs, student_passes, target_passes
from dispatch_rl.decoding.loop import warm_up
from dispatch_rl.decoding.programs import Pass
from dispatch_rl.decoding.sampling import Sampling
from dispatch_rl.decoding.session import DecodingSession
from dispatch_rl.decoding.static import Choice
from dispatch_rl.kernels.operations import REFERENCES
from dispatch_rl.kernels.verify import Rule, Verified
from tests.families import llama, qwen2
from tests.helpers import DEVICE, needs_gpu
from tests.statics import CAPTURABLE, again, capture, decode, on_device, outline
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
    """As on a CPU, warming up is what it was; doctor says so."""
    assert (pocket.capturer is None) == (DEVICE.type == "cpu")
    family = again(pocket, None)
    warm_up(family, ArmTable([Arm("small", 2)]))
    assert all(model.programs is None for model in family.models())
    assert graphs.describe_graphs(family).startswith("none: ")


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
    """With a choice that cannot be captured, passes are captured, and other choices; the one warning says what is lost."""
    monkeypatch.setattr(static, "shape", lambda logits, *_: logits * (int(logits.argmax()) > 0))
    with pytest.warns(GraphWarning, match=r"^tiny chooses tokens \(coupled, watched\) without CUDA graphs \(60 tokens: CaptureError: "):
        family = capture(other, Tapes(), ARMS)
    programs = family.students["tiny"].programs
    assert programs is not None
    others = {None, Choice(GREEDY), Choice(COUPLED), Choice(GREEDY, watched=True)}
    assert {what.then for what in programs.captured} == others
    monkeypatch.setattr(graphs, "operations", lambda device: CAPTURABLE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is not tried again, not even when the cache has grown
        family.students["tiny"].start(family.students["tiny"].cache.capacity + 1)
        capture_graphs(family, ARMS, tell=lambda line: None)
    programs = family.students["tiny"].programs
    assert programs is not None
    assert {what.then for what in programs.captured} == others
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


def test_without_memory_for_a_usual_text_a_model_stays_eager(other: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """One warning; shorter texts have room as ever."""
    monkeypatch.setattr(graphs, "operations", lambda device: CAPTURABLE)
    made = StackedCache.allocate

    def limited(self: StackedCache, texts: int = 1) -> Tensor:
        if self.capacity > 512:
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB")
        return made(self, texts)

    monkeypatch.setattr(StackedCache, "allocate", limited)
    monkeypatch.setattr(graphs, "_ROOM", 1024)
    family = again(other, Tapes())
    with pytest.warns(GraphWarning) as told:
        capture_graphs(family, ARMS[:1], tell=lambda line: None)
    lost = "runs without CUDA graphs (OutOfMemoryError: CUDA out of memory.)"
    assert [str(warning.message) for warning in told] == [f"target {lost}", f"tiny {lost}"]
    plain, captured = (decode(f, [5, 6, 7], Sampling(1.0, seed=1), 30, lambda s: s.step(ARMS[0])) for f in (other, family))
    assert outline(captured) == outline(plain)


def test_a_model_that_is_not_ours_runs_as_it_did_and_says_so(other: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """A student that runs through transformers beside a captured target: no warning, a remark, and the same text."""
    monkeypatch.setattr(graphs, "operations", lambda device: CAPTURABLE)
    monkeypatch.setattr(families, "find_capturer", lambda config, device: Tapes())
    gelu = qwen2(320, 16, 1, seed=2)
    gelu.config.hidden_act = "gelu"
    models = {"family.target": llama(320, 16, 2, seed=1), "family.students.tiny": gelu}
    config = FamilyConfig(students={"tiny": ModelSource("none")})
    family = families.assemble(config, {key: m.eval().requires_grad_(False) for key, m in models.items()}, other.tokenizer, DEVICE, ())
    assert family.remarks == ("family.students.tiny: it runs without CUDA graphs, through transformers' forward pass or on another device",)
    plain = again(family, None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        capture_graphs(family, ARMS[:1], tell=lambda line: None)
    assert (family.target.programs is None, family.students["tiny"].programs) == (False, None)
    texts = (decode(f, [5, 6, 7], Sampling(1.0, seed=1), 30, lambda s: s.step(ARMS[0])) for f in (plain, family))
    assert outline(next(texts)) == outline(next(texts))


@needs_gpu
def test_a_device_has_its_number() -> None:
    """Tensors tell theirs: a family whose device had none would take every model for one of another device, and capture nothing."""
    assert families.find_device("auto") == torch.empty(0, device="cuda").device


@needs_gpu
def test_graphs_come_after_the_last_one_is_gone() -> None:
    """A pool that has lost all its graphs takes no other; a text that outgrows the cache of a target alone would end there."""
    capturer, total = CudaGraphs(DEVICE), torch.zeros(1, device=DEVICE)
    for _ in range(3):
        graph = capturer.capture(lambda: total.add_(1))  # type: ignore[arg-type]
        total.zero_()
        graph.replay()
        assert total.tolist() == [1]
        del graph
        torch.cuda.empty_cache()


@needs_gpu
def test_a_capture_that_fails_leaves_the_device_as_it_was() -> None:
    """Whatever waits for the device ends a capture; the next one succeeds, and so do streams and random numbers."""
    capturer, total, before = CudaGraphs(DEVICE), torch.zeros(1, device=DEVICE), torch.cuda.current_stream()
    with pytest.raises(RuntimeError):
        capturer.capture(lambda: total.add_(total.item()))  # type: ignore[arg-type]
    assert torch.cuda.current_stream() == before
    graph = capturer.capture(lambda: total.add_(1))  # type: ignore[arg-type]
    total.zero_()
    graph.replay()
    assert total.tolist() == [1]
    assert bool(torch.randn(4, device=DEVICE).isfinite().all())


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


def test_a_draft_is_told_with_its_judgement(other: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host waits once a round, for both; what was drafted from no numbers is told then, and does not get into the text."""
    family, arm, sampling = capture(other, Tapes(), [Arm("twin", 5)]), Arm("twin", 5), Sampling(1.0, seed=2)
    waits: list[int] = []
    to_host = DeviceSampler._to_host

    def counted(self: DeviceSampler, found: Verified) -> Verified:
        waits.append(len(found.packed))
        return to_host(self, found)

    with on_device():
        session = DecodingSession(family, [5, 6, 7], sampling, 60)
    monkeypatch.setattr(DeviceSampler, "_to_host", counted)
    monkeypatch.setattr(Tensor, "cpu", lambda self: pytest.fail("the host waits"))
    failures: list[Exception] = []
    session.step(arm, failures.append)
    assert (len(waits), failures) == (1, [])
    cache = family.students["twin"].cache
    assert isinstance(cache, StackedCache)
    assert cache.buffer is not None
    cache.buffer.fill_(torch.nan)
    session.step(arm, failures.append)
    assert [str(failure) for failure in failures] == ["logits that are not numbers"]
    with pytest.raises(FloatingPointError):
        session.step(arm)
    session.step(Arm(NONE), failures.append)
    assert len(failures) == 1
    assert len(waits) == 4
    monkeypatch.undo()
    assert session.text_tokens == own_text(other, [5, 6, 7], session.text_tokens, sampling)
