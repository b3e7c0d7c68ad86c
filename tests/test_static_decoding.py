"""Decoding by captured passes writes what decoding operation by operation writes, round for round.

Tapes stand for CUDA graphs on a CPU: they replay what was recorded, so whatever the host knows later does not reach them.
"""

import warnings
from dataclasses import replace
from random import Random
from typing import Any

import pytest
import torch

from dispatch_rl.decoding import graphs
from dispatch_rl.decoding.arms import Arm, ArmTable
from dispatch_rl.decoding.cache import StackedCache
from dispatch_rl.decoding.capturing import CudaGraphs
from dispatch_rl.decoding.families import Family
from dispatch_rl.decoding.loop import Dispatch, DispatchWarning
from dispatch_rl.decoding.models import CachedModel
from dispatch_rl.decoding.programs import Pass
from dispatch_rl.decoding.sampling import Sampling
from dispatch_rl.decoding.session import DecodingSession
from dispatch_rl.decoding.static import Choice
from dispatch_rl.kernels import operations
from dispatch_rl.kernels.verify import Rule
from dispatch_rl.policies.fixed import FixedPolicy
from tests.families import llama, qwen2
from tests.helpers import DEVICE, needs_gpu
from tests.statics import ARMS, CAPTURABLE, FILTERED, again, decode, on_device, outline
from tests.tape import Reruns, Tapes
from tests.test_lossless import own_text, random_sampling, steppers


def test_any_policy_writes_the_same_rounds(other: Family, taped: Family) -> None:
    """Random prompts, samplings and policies without sense, those by token included: the records agree, and the text is the target's."""
    assert isinstance(taped.capturer, Tapes)
    before = taped.capturer.replays
    for seed in range(30):
        both = []
        for family in (other, taped):
            rng = Random(seed)
            prompt = [rng.randrange(1, other.vocab) for _ in range(rng.randint(1, 60))]
            sampling = random_sampling(rng) if seed % 5 else replace(FILTERED, seed=seed)
            both.append(decode(family, prompt, sampling, rng.randint(20, 50), steppers(family, rng)))
        plain, captured = both
        assert outline(captured) == outline(plain), seed
        assert captured.text_tokens == own_text(other, prompt, captured.text_tokens, sampling)
    assert taped.capturer.replays - before > 500


@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: arm.name)
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.8, seed=2**64 - 3), FILTERED], ids=["greedy", "coupled", "filtered"])
def test_every_arm_runs_through_graphs_alone(other: Family, taped: Family, arm: Arm, sampling: Sampling, eager: list[int]) -> None:
    """Nothing is read operation by operation, and the records are the same."""
    prompt = [5, 6, 7, 5, 6, 7, 9]
    plain = decode(other, prompt, sampling, 50, lambda session: session.step(arm))
    eager.clear()
    captured = decode(taped, prompt, sampling, 50, lambda session: session.step(arm))
    assert outline(captured) == outline(plain)
    for ours, theirs in zip(captured.rounds, plain.rounds, strict=True):
        assert ours.entropies_nats == pytest.approx(theirs.entropies_nats, abs=1e-4)
    assert eager == []


def test_sessions_that_take_turns_do_not_disturb_each_other(other: Family, taped: Family) -> None:
    """Sessions whose tokens, seeds and positions stand in the same inputs write what each of them writes alone."""
    arm, samplings = Arm("tiny", 4), [Sampling(0.8, seed=1), Sampling(), Sampling(0.8, seed=2)]
    alone = [decode(other, [5, 6, 7 + i], sampling, 40, lambda s: s.step(arm)) for i, sampling in enumerate(samplings)]
    with on_device():
        together = [DecodingSession(taped, [5, 6, 7 + i], sampling, 40) for i, sampling in enumerate(samplings)]
    rng, left = Random(3), 0
    while open_ones := [session for session in together if not session.finished]:
        session = rng.choice(open_ones)
        if session.room > 0 and rng.random() < 0.4:
            # Its draft is left lying while others decode: by then its tokens are neither what the inputs hold nor what was recorded.
            session.draft("tiny")
            left += 1
        else:
            session.step(arm)
    assert left > 5
    for session, expected in zip(together, alone, strict=True):
        assert session.text_tokens == expected.text_tokens


def test_rejection_sampling_reads_by_graphs_and_draws_eagerly(other: Family, taped: Family) -> None:
    """It needs probabilities, which are not captured; the passes are."""
    sampling, arm = Sampling(0.9, seed=5, method="rejection"), Arm("tiny", 3)
    plain = decode(other, [5, 6, 7], sampling, 50, lambda s: s.step(arm))
    assert outline(decode(taped, [5, 6, 7], sampling, 50, lambda s: s.step(arm))) == outline(plain)


def test_tokens_come_with_their_clearness(other: Family, taped: Family) -> None:
    """A policy that is asked at every token sees the same margins and entropies."""
    seen: list[list[Any]] = []
    for family in (other, taped):
        found: list[Any] = []

        def step(session: DecodingSession, found: list[Any] = found) -> None:
            while session.room > 0 and len(session.drafted) < 3:
                token = session.draft(("tiny", "twin")[len(session.drafted) % 2], clarity=True)
                assert token is not None
                found += [token.id, *(token.clarity or ())]
            session.verify()

        decode(family, [5, 6, 7], Sampling(0.8, seed=1), 40, step)
        seen.append(found)
    assert seen[1] == pytest.approx(seen[0], abs=1e-4)


def test_a_text_that_outgrows_the_cache_is_captured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache moves; graphs that point to where it was would read what is there no more."""
    shared: Any = {"hidden": 16, "layers": 2, "context": 900}
    models = {"target": llama(64, seed=1, **shared), "tiny": qwen2(64, seed=2, **shared)}
    target, tiny = (CachedModel(model.eval().requires_grad_(False), 64) for model in models.values())
    family = Family(target, {"tiny": tiny}, None, 64, 900, frozenset(), torch.device("cpu"))  # type: ignore[arg-type]
    monkeypatch.setattr(graphs, "USUAL_CONTEXT", 100)
    monkeypatch.setattr(graphs, "operations", lambda device: CAPTURABLE)
    monkeypatch.setattr(graphs, "SIZES", (1, 2, 4, 8))
    lines: list[str] = []
    captured = again(family, Tapes())
    graphs.capture_graphs(captured, [Arm("tiny", 4)], tell=lines.append)
    cache = captured.target.cache
    assert isinstance(cache, StackedCache)
    before = cache.buffer
    prompt = [3 + i * i % 61 for i in range(480)]
    for _ in range(2):
        sampling = Sampling(1.0, seed=1)
        plain = decode(family, prompt, sampling, 30, lambda s: s.step(Arm("tiny", 4)))
        assert outline(decode(captured, prompt, sampling, 30, lambda s: s.step(Arm("tiny", 4)))) == outline(plain)
    assert len(lines) == 4, "both models were captured twice"
    assert cache.buffer is not before
    assert cache.capacity == 1024
    assert captured.target.programs is not None
    assert captured.target.programs.fits


@pytest.mark.parametrize("fault", ["replay raises", "cache is NaN", "cache is gone", "cache is too long"])
def test_a_student_that_fails_changes_no_token(taped: Family, fault: str) -> None:
    """The fifth promise holds for graphs: the target writes the rest alone, after one warning."""
    with on_device():
        session = DecodingSession(taped, [5, 6, 7], Sampling(1.0, seed=2), 50)
    student = taped.students["twin"]
    dispatch = Dispatch(session, FixedPolicy(0), ArmTable([Arm("twin", 5)]))
    dispatch.step()
    assert isinstance(student.cache, StackedCache)
    before, buffer, programs = student.cache.length, student.cache.buffer, student.programs
    assert programs is not None
    assert buffer is not None
    kept = programs._programs.copy()
    try:
        if fault == "replay raises":
            programs._programs = dict.fromkeys(kept, _Broken())
        elif fault == "cache is NaN":
            with torch.inference_mode():
                buffer[..., :before, :] = torch.nan
        elif fault == "cache is gone":
            student.cache._buffer = None
        else:
            student.cache._length = before + 500
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            while not session.finished:
                dispatch.step()
    finally:
        programs._programs, student.cache._buffer = kept, buffer
    assert session.text_tokens == own_text(taped, [5, 6, 7], session.text_tokens, Sampling(1.0, seed=2))
    assert [w.category for w in found] == [DispatchWarning]
    assert dispatch.failure is not None
    assert {record.drafted for record in session.rounds[2:]} == {()}


class _Broken:
    def replay(self) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")


@pytest.mark.filterwarnings("ignore:(invalid value|divide by zero|overflow):RuntimeWarning")  # of numpy, in the interpreter
def test_kernels_write_the_same(other: Family) -> None:
    """Attention, verification and choice by Triton kernels (in the interpreter without a GPU), rerun over the same buffers."""
    arms = [Arm("tiny", 2), Arm("tiny", 2, min_margin=0.01)]
    chosen = operations.kernels()
    family = again(other, Reruns())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graphs, "operations", lambda device: chosen)
        patch.setattr(graphs, "USUAL", (Sampling(1.0),))
        patch.setattr(graphs, "SIZES", (1, 4))
        patch.setattr(graphs, "check_pass", lambda *_: None)
        graphs.capture_graphs(family, arms, tell=lambda line: None)
    assert Pass(4, Choice(Rule("coupled")), 2) in family.students["tiny"].programs.captured  # type: ignore[union-attr]
    for arm in arms:
        plain = decode(other, [5, 6, 7], Sampling(1.0, seed=1), 7, lambda s, arm=arm: s.step(arm))  # type: ignore[misc]
        with on_device(chosen):
            session = DecodingSession(family, [5, 6, 7], Sampling(1.0, seed=1), 7)
        while not session.finished:
            session.step(arm)
        assert outline(session) == outline(plain)


@needs_gpu
def test_cuda_graphs_write_the_same_rounds(other: Family) -> None:
    """The same with real graphs and kernels: every arm, every method."""
    arms = [*ARMS, Arm("tiny", 24), Arm("twin", 2, hedge_below=50.0)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        captured = again(other, CudaGraphs(DEVICE))
        graphs.capture_graphs(captured, arms, samplings=[FILTERED])
    for number, arm in enumerate(arms * 3):
        for sampling in (
            Sampling(),
            Sampling(0.8, seed=number),
            replace(FILTERED, seed=number),
            Sampling(0.8, seed=number, method="rejection"),
        ):
            both = [DecodingSession(family, [5, 6, 7, 5, 6], sampling, 60) for family in (other, captured)]
            for session in both:
                while not session.finished:
                    session.step(arm)
            assert outline(both[1]) == outline(both[0]), (arm, sampling)
