"""Decoding by kernels writes the text that decoding by their references writes, with the same records."""

from dataclasses import replace

import pytest
import torch

from dispatch_rl.decoding import device_sampling, session
from dispatch_rl.decoding.arms import Arm
from dispatch_rl.decoding.device_sampling import DeviceSampler, make_sampler
from dispatch_rl.decoding.families import Family
from dispatch_rl.decoding.sampler import Sampler
from dispatch_rl.decoding.sampling import Sampling
from dispatch_rl.decoding.session import DecodingSession
from dispatch_rl.kernels import operations
from dispatch_rl.kernels.verify import Verified
from tests.helpers import DEVICE

SETTINGS = (
    Sampling(),
    Sampling(0.8, seed=2**64 - 3),
    Sampling(0.7, top_k=20, top_p=0.9, seed=4),
    Sampling(0.9, seed=5, method="rejection"),
)


def decode(family: Family, sampling: Sampling) -> DecodingSession:
    """Decode a few tokens with drafts of three."""
    text = DecodingSession(family, family.encode("def add(a, b):\n    return"), sampling, 12)
    while not text.finished:
        text.step(Arm("small", 3))
    return text


@pytest.mark.filterwarnings("ignore:(invalid value|divide by zero|overflow):RuntimeWarning")  # of numpy, in the interpreter
@pytest.mark.parametrize("sampling", SETTINGS, ids=str)
@pytest.mark.parametrize("chosen", ["references", "kernels"])
def test_the_text_is_the_same(pocket: Family, sampling: Sampling, chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every method, seeds beyond 63 bits, one round after the other; entropies agree to rounding."""
    plain = decode(pocket, sampling)
    used = operations.REFERENCES if chosen == "references" else operations.kernels()
    monkeypatch.setattr(session, "make_sampler", lambda sampling, vocab, device: DeviceSampler(sampling, vocab, device, used))
    by_kernels = decode(pocket, sampling)
    assert by_kernels.tokens == plain.tokens
    for ours, theirs in zip(by_kernels.rounds, plain.rounds, strict=True):
        assert (ours.drafted, ours.num_accepted, ours.emitted) == (theirs.drafted, theirs.num_accepted, theirs.emitted)
        assert ours.entropies_nats == pytest.approx(theirs.entropies_nats, abs=1e-5)


def test_a_round_is_told_by_one_copy(pocket: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drafting copies nothing to the host, verification copies once, and drafted tokens stay where they were made."""
    copies: list[int] = []
    told = DeviceSampler._to_host

    def counted(self: DeviceSampler, found: Verified) -> Verified:
        copies.append(len(found.packed))
        return told(self, found)

    monkeypatch.setattr(DeviceSampler, "_to_host", counted)
    sampler = DeviceSampler(Sampling(0.7), pocket.vocab, pocket.device, operations.REFERENCES)
    logits = torch.randn(4, pocket.vocab, device=pocket.device)
    drafted = torch.cat([sampler.draft(logits[i : i + 1], 9 + i, 0)[0] for i in range(3)])
    assert copies == []
    accepted, _ = sampler.verify(logits, drafted, None, 9, 0)
    assert sampler.statistics(logits, accepted + 1).entropy_nats.shape == (4,)
    assert (accepted, len(copies)) == (3, 1)


def test_the_device_decides_who_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """References on a CPU, kernels where the operations are compiled; asked once, when decoding begins."""
    cpu = torch.device("cpu")
    assert operations.operations(cpu) is operations.REFERENCES
    assert type(make_sampler(Sampling(), 11, cpu)) is Sampler
    monkeypatch.setattr(device_sampling, "operations", lambda device: operations.kernels())
    assert type(make_sampler(Sampling(), 11, cpu)) is DeviceSampler


def test_a_gpu_that_triton_cannot_compile_for_gets_the_references(monkeypatch: pytest.MonkeyPatch) -> None:
    """Found out by a launch, since Triton finds no C compiler only then; one line says so."""
    gpu, zeros = torch.device("cuda"), torch.zeros
    ask = operations.operations.__wrapped__
    monkeypatch.setattr(torch, "zeros", lambda *size, device: zeros(*size, device=DEVICE))
    assert ask(gpu) is operations.kernels()

    def launch(gate_up: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("Failed to find C compiler.\nPlease specify via CC environment variable.")

    broken = replace(operations.kernels(), swiglu=launch)
    monkeypatch.setattr(operations, "kernels", lambda: broken)
    with pytest.warns(operations.KernelWarning, match=r"cuda without kernels .*Failed to find C compiler\.\)$"):
        assert ask(gpu) is operations.REFERENCES
    monkeypatch.setattr(operations, "find_spec", lambda name: None)
    assert ask(gpu) is operations.REFERENCES
