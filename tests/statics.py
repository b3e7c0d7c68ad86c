"""Families whose passes are captured, and an attention that can be."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from dispatch_rl.decoding import graphs, session
from dispatch_rl.decoding.arms import Arm
from dispatch_rl.decoding.capturing import Capturer
from dispatch_rl.decoding.device_sampling import DeviceSampler
from dispatch_rl.decoding.families import Family
from dispatch_rl.decoding.models import CachedModel
from dispatch_rl.decoding.session import DecodingSession
from dispatch_rl.kernels.operations import REFERENCES, Operations


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


def outline(text: DecodingSession) -> list[tuple[Any, ...]]:
    """Return what the rounds of a text did, without their times."""
    return [(r.arm, r.students, r.drafted, r.num_accepted, r.emitted, r.num_hedges, r.hedge_stood) for r in text.rounds]
