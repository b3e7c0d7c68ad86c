"""Verification: hand examples, transformers' own warpers, and the law of what rejection sampling emits."""

from dataclasses import dataclass
from functools import cache
from math import inf, log

import pytest
import torch
from scipy.stats import binomtest
from torch import Tensor
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from dispatch_rl.kernels.noise import Stream, gumbel, uniform
from dispatch_rl.kernels.verify import leading, shape, verify_exact, verify_rejection
from tests.helpers import FALSE_ALARM, chi_square

VOCAB = 7
ROUNDS = 50_000
SEED = 2**40 + 5


@dataclass(frozen=True)
class Setting:
    """How both distributions are shaped, and how far the student drafts."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    draft_length: int = 1


@dataclass(frozen=True)
class Played:
    """Many rounds: the texts' contexts, and what verification made of each draft."""

    p_target: Tensor
    """Law of the next token given the last one ``[vocab, vocab]``."""
    q_draft: Tensor
    """The student's law ``[vocab, vocab]``."""
    contexts: Tensor
    """The token before the round and the draft tokens ``[rounds, draft + 1]``."""
    accepted: Tensor
    """Accepted draft tokens ``[rounds]``."""
    following: Tensor
    """The token after them ``[rounds]``."""


SETTINGS = (
    Setting(),
    Setting(draft_length=3),
    Setting(temperature=0.7, draft_length=3),
    Setting(top_k=3, draft_length=3),
    Setting(top_p=0.8),
    Setting(temperature=0.7, top_k=3, top_p=0.8, draft_length=3),
)


@cache
def play(setting: Setting, swapped: bool = False) -> Played:
    """Draft and verify :data:`ROUNDS` rounds of a text where the next token depends on the last; optionally with p and q swapped.

    Position ``(draft + 1) * round + i`` keys the noise of draft token ``i``, so no two rounds share a number.
    """
    generator = torch.Generator().manual_seed(4)
    target = 1.2 * torch.randn(VOCAB, VOCAB, generator=generator)
    student = target + 0.35 * torch.randn(VOCAB, VOCAB, generator=generator)
    p, q = (shape(x, setting.temperature, setting.top_k, setting.top_p).softmax(-1) for x in (target, student))
    length = setting.draft_length
    positions = torch.arange(ROUNDS * (length + 1))
    draft_noise = gumbel(SEED, positions, VOCAB, Stream.DRAFT).view(ROUNDS, length + 1, VOCAB)
    accept = uniform(SEED, positions, 1, Stream.ACCEPT).view(ROUNDS, length + 1)[:, :length]
    noise = gumbel(SEED, positions, VOCAB, Stream.RESIDUAL).view(ROUNDS, length + 1, VOCAB)
    text = [torch.arange(ROUNDS) % VOCAB]
    for i in range(length):
        text.append((q[text[-1]].log() + draft_noise[:, i]).argmax(-1))
    contexts = torch.stack(text, dim=1)
    judged, drawn = (q, p) if swapped else (p, q)
    rounds = zip(judged[contexts], drawn[contexts[:, :-1]], contexts[:, 1:], accept, noise, strict=True)
    accepted, following = torch.tensor([verify_rejection(*one) for one in rounds]).unbind(-1)
    return Played(p, q, contexts, accepted, following)


def transition_counts(played: Played) -> Tensor:
    """Return how often each token was emitted after each other ``[(draft + 1) * vocab, vocab]``, by place in the round."""
    rounds, places = played.contexts.shape
    emitted = torch.cat([played.contexts[:, 1:], torch.zeros(rounds, 1, dtype=torch.int64)], dim=1)
    emitted[torch.arange(rounds), played.accepted] = played.following
    cells = (torch.arange(places) * VOCAB + played.contexts) * VOCAB + emitted
    was_emitted = torch.arange(places) <= played.accepted[:, None]
    return cells[was_emitted].bincount(minlength=places * VOCAB**2).view(-1, VOCAB)


def one_hot(*tokens: int) -> Tensor:
    """Return scores whose argmaxes are ``tokens``."""
    return torch.nn.functional.one_hot(torch.tensor(tokens), 5).float()


@pytest.mark.parametrize("temperature", [0.3, 0.7, 1.0, 1.7])
@pytest.mark.parametrize("top_k", [None, 1, 3, 50, 400])
@pytest.mark.parametrize("top_p", [None, 0.05, 0.8, 0.95, 1.0])
@pytest.mark.parametrize("ties", [False, True])
def test_shape_is_transformers(temperature: float, top_k: int | None, top_p: float | None, ties: bool) -> None:
    """Bit for bit what generate() samples from, ties and impossible tokens included."""
    logits = 3 * torch.randn(6, 333, generator=torch.Generator().manual_seed(0))
    logits = logits.round() if ties else logits
    logits[:, ::10] = -inf
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    warpers += [TopKLogitsWarper(top_k)] if top_k is not None else []
    warpers += [TopPLogitsWarper(top_p)] if top_p is not None else []
    before = logits.clone()
    expected = warpers(torch.zeros(6, 1, dtype=torch.int64), logits)  # type: ignore[arg-type]
    assert torch.equal(shape(logits, temperature, top_k, top_p), expected)
    assert torch.equal(logits, before)


def test_shape_by_hand() -> None:
    """p = (1/8, 1/2, 1/8, 1/4): both eighths are the third likeliest; half and a quarter first reach 0.7."""
    logits = torch.tensor([[1 / 8, 1 / 2, 1 / 8, 1 / 4]]).log()
    assert torch.equal(shape(logits, 1.0, top_k=3), logits)
    assert shape(logits, 1.0, top_k=2).isfinite().tolist() == [[False, True, False, True]]
    assert shape(logits, 1.0, top_p=0.7).isfinite().tolist() == [[False, True, False, True]]
    assert shape(logits, 1.0, top_p=0.4).isfinite().tolist() == [[False, True, False, False]]
    assert torch.equal(shape(logits, 0.5), 2 * logits)


def test_top_p_comes_after_temperature_and_top_k() -> None:
    """p = (4, 3, 2)/9 squares to (16, 9, 4)/29: 16/29 > 1/2 alone. Top-2 leaves 4/7 > 0.55, where 4/9 would not have been enough."""
    logits = torch.tensor([[4.0, 3.0, 2.0]]).log()
    assert shape(logits, 1.0, top_p=0.5).isfinite().tolist() == [[True, True, False]]
    assert shape(logits, 0.5, top_p=0.5).isfinite().tolist() == [[True, False, False]]
    assert shape(logits, 1.0, top_p=0.55).isfinite().tolist() == [[True, True, False]]
    assert shape(logits, 1.0, top_k=2, top_p=0.55).isfinite().tolist() == [[True, False, False]]


@pytest.mark.parametrize("top_p", [0.0, 1e-9])
def test_the_likeliest_token_always_stays(top_p: float) -> None:
    """However small top-p is, and though 1 - 1e-9 is 1 in float32."""
    assert shape(torch.tensor([[0.0, 3.0, 1.0]]), 1.0, top_p=top_p).isfinite().tolist() == [[False, True, False]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_shaped_in_float32(dtype: torch.dtype) -> None:
    """Low-precision logits are widened first."""
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(1)).to(dtype)
    assert torch.equal(shape(logits, 0.7, 20, 0.9), shape(logits.float(), 0.7, 20, 0.9))
    assert shape(logits, 0.7).dtype == torch.float32


@pytest.mark.parametrize(
    ("stands", "count"), [([], 0), ([True], 1), ([False], 0), ([True, True, False, True], 2), ([False, True, True], 0)]
)
def test_leading(stands: list[bool], count: int) -> None:
    """Only what stands before the first failure counts."""
    assert leading(torch.tensor(stands, dtype=torch.bool)).item() == count


@pytest.mark.parametrize(
    ("drafted", "accepted", "following"),
    [
        ([], 0, 3),
        ([0], 0, 3),
        ([3], 1, 1),
        ([3, 1, 4], 3, 2),
        ([3, 1, 0], 2, 4),
        ([3, 0, 4], 1, 1),
        ([0, 1, 4], 0, 3),
        ([3, 3, 3], 1, 1),
    ],
)
def test_verify_exact(drafted: list[int], accepted: int, following: int) -> None:
    """The target says 3, 1, 4, 2; a draft stands up to its first difference, and the target's own token follows."""
    scores = one_hot(3, 1, 4, 2)[: len(drafted) + 1]
    assert verify_exact(scores, torch.tensor(drafted, dtype=torch.int64)) == (accepted, following)


@pytest.mark.parametrize(("u", "accepted", "following"), [(0.01, 1, 2), (0.49, 1, 2), (0.5, 0, 1), (0.51, 0, 1), (0.99, 0, 1)])
def test_verify_rejection_by_hand(u: float, accepted: int, following: int) -> None:
    """p(x) = 1/4 and q(x) = 1/2: x stands if u < 1/2, else only token 1 is left, where p exceeds q, however loud the noise."""
    p = torch.tensor([[0.25, 0.5, 0.25], [0.25, 0.25, 0.5]])
    q = torch.tensor([[0.5, 0.25, 0.25]])
    noise = torch.tensor([[100.0, 0.0, 100.0], [0.0, 0.0, 0.0]])
    assert verify_rejection(p, q, torch.tensor([0]), torch.tensor([u]), noise) == (accepted, following)


def test_the_token_after_a_whole_draft_is_the_targets() -> None:
    """Behind the draft nothing is subtracted, and that row's own noise decides: log(1/4) + 2 > log(1/2) + 1."""
    p = torch.tensor([[0.5, 0.5, 0.0], [0.5, 0.25, 0.25]])
    noise = torch.tensor([[9.0, 0.0, 0.0], [1.0, 0.0, 2.0]])
    assert verify_rejection(p, p[:1], torch.tensor([1]), torch.tensor([0.999]), noise) == (1, 2)
    assert log(1 / 4) + 2 > log(1 / 2) + 1


def test_an_empty_draft_is_a_plain_sample() -> None:
    """Without a draft the target's row and the noise decide."""
    p, none = torch.tensor([[0.5, 0.3, 0.2]]), torch.arange(0)
    for token in range(3):
        noise = 5 * torch.nn.functional.one_hot(torch.tensor([token]), 3).float()
        assert verify_rejection(p, torch.empty(0, 3), none, torch.empty(0), noise) == (0, token)


def test_a_rejection_ends_the_draft() -> None:
    """Behind a rejected token nothing counts, though it would have stood."""
    p = torch.tensor([[1.0, 0.0, 0.0]]).expand(4, 3)
    q = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    assert verify_rejection(p, q, torch.tensor([0, 1, 0]), torch.full((3,), 0.5), torch.zeros(4, 3)) == (1, 0)


def test_nothing_left_over_is_no_nan() -> None:
    """p a hair below q everywhere: the residual is empty, and a possible token follows."""
    q = torch.tensor([[0.6, 0.4, 0.0]])
    p = torch.cat([q * (1 - 2**-20), q])
    assert verify_rejection(p, q, torch.tensor([0]), torch.tensor([1 - 2**-24]), torch.tensor([[0.0, 9.0, 99.0]] * 2)) == (0, 1)


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_rejection_sampling_emits_the_targets_law(setting: Setting) -> None:
    """Over 50,000 rounds every emitted token is distributed as the target's, given the one before; false alarm 1e-6."""
    played = play(setting)
    counts = transition_counts(played)
    assert counts.sum() == ROUNDS + played.accepted.sum()
    statistic, threshold = chi_square(counts, played.p_target.repeat(setting.draft_length + 1, 1))
    assert statistic < threshold


@pytest.mark.parametrize("setting", SETTINGS[:3], ids=str)
def test_swapped_distributions_are_caught(setting: Setting) -> None:
    """The same test is red when p and q are swapped, though the two are close: on average 0.15 apart or less (total variation)."""
    played = play(setting, swapped=True)
    assert (played.p_target - played.q_draft).abs().sum(-1).mean() / 2 < 0.15
    statistic, threshold = chi_square(transition_counts(played), played.p_target.repeat(setting.draft_length + 1, 1))
    assert statistic > threshold


@pytest.mark.parametrize("setting", SETTINGS[3:], ids=str)
def test_swapped_exclusions_are_caught(setting: Setting) -> None:
    """With top-k or top-p the swap emits tokens that the target excludes."""
    played = play(setting, swapped=True)
    counts = transition_counts(played)
    assert counts[played.p_target.repeat(setting.draft_length + 1, 1) == 0].any()
    with pytest.raises(AssertionError, match="impossible"):
        chi_square(counts, played.p_target.repeat(setting.draft_length + 1, 1))


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_the_accepted_share_is_the_overlap(setting: Setting) -> None:
    """A first draft token stands with probability sum(min(p, q)), given each token before; false alarm 1e-6 over all of them."""
    played = play(setting)
    overlap = torch.minimum(played.p_target, played.q_draft).sum(-1).clamp(max=1)
    for token in range(VOCAB):
        stood = played.accepted[played.contexts[:, 0] == token] > 0
        assert binomtest(int(stood.sum()), len(stood), overlap[token].item()).pvalue > FALSE_ALARM / VOCAB
