"""Families whose passes are captured, and an attention that can be."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from dispatch_rl.decoding import graphs, session
from dispatch_rl.decoding.arms import LOOKUP, NONE, Arm
from dispatch_rl.decoding.capturing import Capturer
from dispatch_rl.decoding.device_sampling import DeviceSampler
from dispatch_rl.decoding.families import Family
from dispatch_rl.decoding.models import CachedModel
from dispatch_rl.decoding.sampling import Sampling
from dispatch_rl.decoding.session import DecodingSession
from dispatch_rl.kernels.operations import REFERENCES, Operations
from tests.tape import Tapes


def attention(q: Tensor, keys: Tensor, values: Tensor, length: Tensor, visible: Tensor | None = None) -> Tensor:
    """Do what the reference does without reading ``length`` on the host: everything is multiplied, and masked."""
    new, capacity = len(q), keys.shape[1]
    place, query = torch.arange(capacity), torch.arange(new)
    ahead = place - (length - new)
    among = query[:, None] >= query if visible is None else visible
    seen = (ahead < 0) | (among[:, ahead.clamp(0, new - 1)] & (ahead < new))
    used = (place < length)[:, None]
    keys, values = (x.where(used, 0).repeat_interleave(q.shape[1] // len(x), 0) for x in (keys, values))
    scores = torch.einsum("qhd, hpd -> hqp", q, keys) * q.shape[-1] ** -0.5
    return torch.einsum("hqp, hpd -> qhd", scores.masked_fill(~seen, -torch.inf).softmax(-1), values)


CAPTURABLE = replace(REFERENCES, attention=attention)
"""Operations that read nothing on the host."""


def again(family: Family, capturer: Capturer | None) -> Family:
    """Return a family of the same models, with caches and captured passes of its own."""
    models = {name: CachedModel(model.model, family.vocab, family.device) for name, model in family.students.items()}
    return replace(family, target=CachedModel(family.target.model, family.vocab, family.device), students=models, capturer=capturer)


def capture(family: Family, capturer: Capturer, arms: Sequence[Arm], operations: Operations = CAPTURABLE, **options: Any) -> Family:
    """Return such a family with what ``arms`` need captured."""
    captured = again(family, capturer)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graphs, "operations", lambda device: operations)
        graphs.capture_graphs(captured, arms, tell=lambda line: None, **options)
    return captured


@contextmanager
def on_device(operations: Operations = CAPTURABLE) -> Iterator[None]:
    """Let sessions sample as on a GPU, by ``operations``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "make_sampler", lambda sampling, vocab, device: DeviceSampler(sampling, vocab, device, operations))
        yield


def decode(
    family: Family, prompt: Sequence[int], sampling: Sampling, limit: int, step: Callable[[DecodingSession], object]
) -> DecodingSession:
    """Decode to the end; a family with captured passes samples as on a GPU."""
    if family.capturer is None:
        session = DecodingSession(family, prompt, sampling, limit)
    else:
        with on_device():
            session = DecodingSession(family, prompt, sampling, limit)
    while not session.finished:
        step(session)
    return session


def outline(text: DecodingSession) -> list[tuple[Any, ...]]:
    """Return what the rounds of a text did, without their times."""
    return [(r.arm, r.students, r.drafted, r.num_accepted, r.emitted, r.num_hedges, r.hedge_stood) for r in text.rounds]


ARMS = (
    Arm("tiny", 4),
    Arm("twin", 5),
    Arm("twin", 3, min_margin=0.1, max_entropy=2.0),
    Arm("tiny", 6, min_confidence=0.3, hedge_below=3.0),
    Arm(LOOKUP, 3),
    Arm(NONE),
)
FILTERED = Sampling(0.7, top_k=20, top_p=0.9, seed=4)


@pytest.fixture(scope="session")
def taped(other: Family) -> Family:
    """The other family with everything captured on tapes that :data:`ARMS` need."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return capture(other, Tapes(), ARMS, samplings=[FILTERED])


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths of all passes that are done operation by operation."""
    lengths: list[int] = []
    read = CachedModel.eager

    def counted(self: CachedModel, tokens: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        lengths.append(len(tokens))
        return read(self, tokens, *args, **options)

    monkeypatch.setattr(CachedModel, "eager", counted)
    return lengths
