"""A dispatcher that fails costs time, never text: faults of every kind, a thousand times."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import cycle
from random import Random
from typing import Any

import pytest
import torch

from dispatch_rl.config import PromptConfig
from dispatch_rl.decoding.arms import Arm, ArmTable
from dispatch_rl.decoding.families import Family
from dispatch_rl.decoding.loop import Dispatch, DispatchWarning, decode
from dispatch_rl.decoding.models import CachedModel
from dispatch_rl.decoding.sampling import Sampling
from dispatch_rl.decoding.session import DecodingSession
from dispatch_rl.policies.base import Observation, Policy
from dispatch_rl.policies.fixed import FixedPolicy, RandomPolicy
from dispatch_rl.prompts import prompts
from tests.bundles import network
from tests.test_lossless import own_text, random_sampling

DRAFTING = ArmTable([Arm("small", 4), Arm("medium", 3), Arm("large", 2)])


class Choosing(Policy):
    """Chooses what it is told to, learns, and can be broken."""

    learns = True

    def __init__(self, inner: Policy) -> None:
        self.choose: Callable[[Observation], Any] = inner
        self.learn: Callable[[], None] = lambda: None

    def __call__(self, observation: Observation) -> int:
        action: int = self.choose(observation)
        return action

    def update(self, action: int, emitted: int, latency_ms: float) -> None:
        self.learn()


def _raise(error: BaseException) -> Callable[..., Any]:
    def broken(*_: Any, **__: Any) -> Any:
        raise error

    return broken


def _students(dispatch: Dispatch) -> list[CachedModel]:
    return list(dispatch.session.family.students.values())


def _choose(what: Any) -> Callable[[Dispatch], None]:
    def fault(dispatch: Dispatch) -> None:
        dispatch.policy.choose = what if callable(what) else lambda _: what  # type: ignore[attr-defined]

    return fault


def _nan_weights(dispatch: Dispatch) -> None:
    policy = network(tuple(dispatch.session.family.students), len(dispatch.arms))
    policy._rest[0][3, 4] = torch.nan
    dispatch.policy.choose = policy  # type: ignore[attr-defined]


def _learning_raises(dispatch: Dispatch) -> None:
    dispatch.policy.learn = _raise(ZeroDivisionError("no rounds"))  # type: ignore[attr-defined]


def _no_students(dispatch: Dispatch) -> None:
    dispatch.session.family.students.clear()


def _forward(make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Callable[[Dispatch], None]:
    def fault(dispatch: Dispatch) -> None:
        for student in _students(dispatch):
            student.forward = make(student.forward)  # type: ignore[method-assign]

    return fault


def _nan_logits(forward: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, **options: forward(*args, **options).index_fill(1, torch.tensor([77]), torch.nan)


def _nothing(forward: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, **options: forward(*args, **options)[:0]


def _in_the_second_token(forward: Callable[..., Any]) -> Callable[..., Any]:
    calls: list[None] = []

    def late(*args: Any, **options: Any) -> Any:
        calls.append(None)
        if len(calls) > 1:
            raise RuntimeError("only once")
        return forward(*args, **options)

    return late


def _caches(change: Callable[[Any], None]) -> Callable[[Dispatch], None]:
    def fault(dispatch: Dispatch) -> None:
        for student in _students(dispatch):
            if student.cache.addresses():
                change(student.cache)

    return fault


def _fill(value: float) -> Callable[[Any], None]:
    return torch.inference_mode()(lambda cache: cache._buffer.fill_(value))


FAULTS: dict[str, Callable[[Dispatch], None]] = {
    "policy raises": _choose(_raise(KeyError("entropy"))),
    "policy chooses -1": _choose(-1),
    "policy chooses 99": _choose(99),
    "policy chooses None": _choose(None),
    "policy chooses 0.5": _choose(0.5),
    "policy's weights are NaN": _nan_weights,
    "learning raises": _learning_raises,
    "students are gone": _no_students,
    "student raises": _forward(lambda _: _raise(RuntimeError("device-side assert\nsecond line"))),
    "student is out of memory": _forward(lambda _: _raise(torch.OutOfMemoryError("CUDA out of memory"))),
    "student raises late": _forward(_in_the_second_token),
    "student's logits are NaN": _forward(_nan_logits),
    "student's logits are missing": _forward(_nothing),
    "cache is NaN": _caches(_fill(torch.nan)),
    "cache is nonsense": _caches(_fill(3.0)),
    "cache is gone": _caches(lambda cache: setattr(cache, "_buffer", None)),
    "cache is too long": _caches(lambda cache: setattr(cache, "_length", cache.length + 40)),
    "cache is too short": _caches(lambda cache: setattr(cache, "_length", max(0, cache.length - 3))),
}
QUIET = {"cache is NaN", "cache is nonsense", "cache is gone", "cache is too long", "cache is too short"}
"""A cache that nobody has filled yet cannot be broken, and one that is wrong in a way nobody can see only makes bad drafts."""


@contextmanager
def repaired(family: Family) -> Iterator[Family]:
    """Yield the family with students that may be broken, and mend them."""
    caches: list[tuple[Any, Any]] = [(student.cache, vars(student.cache)["_buffer"]) for student in family.students.values()]
    try:
        yield replace(family, students=dict(family.students))
    finally:
        for student in family.students.values():
            vars(student).pop("forward", None)
        for cache, buffer in caches:
            cache._buffer = buffer if cache._buffer is None else cache._buffer


def test_a_thousand_faults_change_no_token(pocket: Family) -> None:
    """Every text is the target's own, greedy and coupled, and ends; a failure is warned of exactly once, and no round drafts after it."""
    rng, found = Random(0), dict.fromkeys(FAULTS, 0)
    stream = cycle([p.tokens[-24:] for p, _ in zip(prompts(PromptConfig(), pocket, "test", seed=9), range(60), strict=False)])
    for number, (kind, prompt) in enumerate(zip(cycle(FAULTS), stream, strict=False)):
        if number == 1000:
            break
        # Greedy texts are cheap; the noise of a sampled one takes longer than its few tokens.
        sampling = random_sampling(rng) if number % 3 == 0 else Sampling()
        limit, begins = rng.randint(4, 14), rng.randint(0, 2)
        with repaired(pocket) as family, warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            session = DecodingSession(family, prompt, sampling, limit)
            dispatch = Dispatch(session, Choosing(RandomPolicy(len(DRAFTING), seed=number)), DRAFTING)
            failed_after = None
            while not session.finished:
                if len(session.rounds) == begins:
                    FAULTS[kind](dispatch)
                dispatch.step()
                failed_after = len(session.rounds) if failed_after is None and dispatch.failure else failed_after
        assert session.text_tokens == own_text(pocket, prompt, session.text_tokens, sampling), (kind, number)
        assert [w.category for w in told] == [DispatchWarning] * (dispatch.failure is not None), (kind, number)
        assert failed_after is None or not any(record.drafted for record in session.rounds[failed_after:])
        found[kind] += dispatch.failure is not None
    assert all(found[kind] for kind in FAULTS if kind not in ("cache is nonsense", "cache is too short")), found
    assert sum(found[kind] for kind in FAULTS if kind not in QUIET) > 500, found


def test_the_warning_says_what_happened(pocket: Family) -> None:
    """One line with the error and the consequence."""
    session = DecodingSession(pocket, pocket.encode("a ="), Sampling(), 8)
    dispatch = Dispatch(session, Choosing(FixedPolicy(0)), DRAFTING)
    with repaired(pocket):
        FAULTS["student raises"](dispatch)
        with pytest.warns(DispatchWarning, match=r"RuntimeError: device-side assert\); the target writes the rest of the text alone"):
            dispatch.step()
    assert dispatch.failure == "RuntimeError: device-side assert"


def test_nan_drafts_stay_out_of_rejection_sampling(pocket: Family) -> None:
    """There a draft's probabilities reach the text; NaN among them is found before."""
    session = DecodingSession(pocket, pocket.encode("a ="), Sampling(1.0, seed=1, method="rejection"), 20)
    dispatch = Dispatch(session, Choosing(FixedPolicy(0)), DRAFTING)
    with repaired(pocket):
        FAULTS["student's logits are NaN"](dispatch)
        with pytest.warns(DispatchWarning, match="FloatingPointError: logits that are not numbers"):
            record = dispatch.step()
    assert record.drafted == ()


def test_what_the_target_raises_is_raised(pocket: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody could write on, so nothing is hidden; the same for an interruption by the user."""
    session = DecodingSession(pocket, pocket.encode("a ="), Sampling(), 20)
    dispatch = Dispatch(session, Choosing(FixedPolicy(0)), DRAFTING)
    with monkeypatch.context() as patch:
        patch.setattr(pocket.target, "forward", _raise(torch.OutOfMemoryError("the target")))
        with pytest.raises(torch.OutOfMemoryError, match="the target"):
            dispatch.step()
    dispatch.policy.choose = _raise(KeyboardInterrupt())  # type: ignore[attr-defined]
    with pytest.raises(KeyboardInterrupt):
        dispatch.step()


def test_the_next_text_is_dispatched_again(pocket: Family) -> None:
    """A failure is over with its text."""
    policy = Choosing(FixedPolicy(7))
    with pytest.warns(DispatchWarning, match=r"IndexError: the policy chose arm 7 of 3"):
        broken = decode(pocket, policy, DRAFTING, pocket.encode("a ="), Sampling(), 12)
    assert {record.arm for record in broken.rounds} == {"none"}
    policy.choose = FixedPolicy(0)
    assert "small-4" in {record.arm for record in decode(pocket, policy, DRAFTING, pocket.encode("a ="), Sampling(), 12).rounds}


def test_without_a_guard_a_student_fails_loudly(pocket: Family) -> None:
    """A session that is stepped by hand, as environments do, raises."""
    session = DecodingSession(pocket, pocket.encode("a ="), Sampling(), 20)
    with repaired(pocket):
        FAULTS["student's logits are NaN"](Dispatch(session, FixedPolicy(0), DRAFTING))
        with pytest.raises(FloatingPointError):
            session.step(DRAFTING[0])
