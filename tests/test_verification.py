"""Verification on the device: the reference's and the kernels' answers are those of the definitions in float64."""

from collections.abc import Callable
from math import inf, log

import pytest
import torch
from torch import Tensor

from dispatch_rl.kernels import verify as reference
from dispatch_rl.kernels import verify_triton
from dispatch_rl.kernels.entropy import entropy
from dispatch_rl.kernels.noise import Stream, gumbel, uniform
from dispatch_rl.kernels.verify import Rule, Turn, Verified, shape
from tests.helpers import DEVICE, chi_square, needs_gpu, poisoned
from tests.kernel_calls import turn

# numpy's, in the interpreter: rows that only pad a tile are empty, and what is computed of them is not written.
pytestmark = pytest.mark.filterwarnings("ignore:(invalid value|divide by zero|overflow):RuntimeWarning")

Verify = Callable[..., Verified]
SEED, POSITION, DRAW = 7, 11, 3
"""What :func:`tests.kernel_calls.turn` says."""
RULES = (Rule(), Rule("coupled"), Rule("rejection"), Rule("coupled", 40, 0.8), Rule("rejection", top_p=0.8), Rule("coupled", top_k=3))


@pytest.fixture(params=["reference", "kernel"])
def verify(request: pytest.FixtureRequest) -> Verify:
    """The reference, and the kernels: compiled where there is a GPU, else in Triton's interpreter, in poisoned memory."""
    if request.param == "reference":
        return reference.verify

    def kernel(logits: Tensor, drafted: Tensor, at: Turn, rule: Rule, q_draft: Tensor | None = None) -> Verified:
        there = Turn(*(value.to(DEVICE) for value in at))
        with poisoned():
            packed = verify_triton.verify(
                logits.to(DEVICE), drafted.to(DEVICE), there, rule, None if q_draft is None else q_draft.to(DEVICE)
            ).packed
        return Verified(packed.cpu())

    return kernel


def by_definition(logits: Tensor, drafted: Tensor, at: Turn, rule: Rule, q_draft: Tensor | None) -> tuple[int, int]:
    """Return accepted and following, token by token in float64; the uniforms are the reference's, which its own tests pin."""
    shaped = logits.double()
    if rule.method != "greedy":
        shaped = shape(logits, float(at.temperature), rule.top_k, rule.top_p).double()
    rows, draw = len(logits), int(at.draw)
    positions = int(at.position) + torch.arange(rows)
    if rule.method == "rejection":
        assert q_draft is not None
        p, q = shaped.softmax(-1), torch.cat([q_draft.double(), torch.zeros(1, logits.shape[1])])
        accept = uniform(SEED, positions, 1, Stream.ACCEPT, draw).double()
        noise = -(-torch.log1p(-uniform(SEED, positions, logits.shape[1], Stream.RESIDUAL, draw).double())).log()
        accepted = 0
        while accepted < int(at.num_drafted) and accept[accepted] * q[accepted, drafted[accepted]] < p[accepted, drafted[accepted]]:
            accepted += 1
        left = p[accepted] - (q[accepted] if accepted < int(at.num_drafted) else 0)
        return accepted, int((left.clamp(min=0).log() + noise[accepted]).argmax())
    if rule.method == "coupled":
        shaped = shaped - (-torch.log1p(-uniform(SEED, positions, logits.shape[1], Stream.TOKEN).double())).log()
    chosen = shaped.argmax(-1).tolist()
    accepted = 0
    while accepted < int(at.num_drafted) and chosen[accepted] == drafted[accepted]:
        accepted += 1
    return accepted, chosen[accepted]


def a_draft(logits: Tensor, rule: Rule, stands: int) -> tuple[Tensor, Tensor]:
    """Return a draft whose first ``stands`` tokens are the target's, and the probabilities of a student close to the target."""
    rows, vocab = logits.shape
    noise = torch.zeros_like(logits, dtype=torch.float32)
    if rule.method != "greedy":
        noise = gumbel(SEED, POSITION + torch.arange(rows), vocab)
    drafted = (shape(logits, 0.7, rule.top_k, rule.top_p) + noise).argmax(-1)[:-1]
    drafted[stands:] = (drafted[stands:] + 1) % vocab
    student = logits[:-1].float() + 0.4 * torch.randn(rows - 1, vocab, generator=torch.Generator().manual_seed(5))
    return drafted, shape(student, 0.7, rule.top_k, rule.top_p).softmax(-1)


def some_logits(rows: int, vocab: int, seed: int = 0, scale: float = 3.0) -> Tensor:
    """Return normal logits."""
    return scale * torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed))


def assert_as_defined(verify: Verify, logits: Tensor, rule: Rule, stands: int, num_drafted: int | None = None) -> None:
    """Compare tokens with the definitions and statistics with the reference's."""
    drafted, q_draft = a_draft(logits, rule, stands)
    at = turn(torch.device("cpu"), len(drafted) if num_drafted is None else num_drafted)
    found = verify(logits, drafted, at, rule, q_draft if rule.method == "rejection" else None)
    assert (int(found.accepted), int(found.following)) == by_definition(logits, drafted, at, rule, q_draft)
    for ours, expected in zip(found.statistics, entropy(logits), strict=True):
        torch.testing.assert_close(ours, expected, atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize(("rows", "vocab"), [(1, 2_039), (2, 2_048), (5, 2_039), (17, 509), (4, 20_011)])
def test_tokens_are_those_of_the_definitions(verify: Verify, rows: int, vocab: int, rule: Rule) -> None:
    """1 to 17 rows, drafts that stand whole, in part and not at all, in every method."""
    for stands in {0, rows // 2, rows - 1}:
        assert_as_defined(verify, some_logits(rows, vocab, stands), rule, stands)


@pytest.mark.parametrize("rule", RULES[:4], ids=str)
@pytest.mark.parametrize("vocab", [151_936, 152_064, 128_256, 50_257])
def test_vocabularies_in_use(verify: Verify, vocab: int, rule: Rule) -> None:
    """Qwen2's two, Llama 3's and GPT-2's, in bfloat16."""
    assert_as_defined(verify, some_logits(2, vocab).bfloat16(), rule, 1)


@pytest.mark.parametrize("rule", RULES[:3], ids=str)
@pytest.mark.parametrize("num_drafted", [0, 1, 3])
def test_filling_is_not_judged(verify: Verify, rule: Rule, num_drafted: int) -> None:
    """A draft shorter than the graph was captured for: the rest is ignored though it would have stood."""
    assert_as_defined(verify, some_logits(5, 509), rule, 4, num_drafted)


@pytest.mark.parametrize("rule", RULES[:3], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_strided_half_precision(verify: Verify, rule: Rule, dtype: torch.dtype) -> None:
    """Logits cut to the common vocabulary, and every second column of a wider tensor."""
    big = some_logits(4, 1_030).to(dtype)
    for logits in (big[:, :509], big[:, ::2], big[::2]):
        assert not logits.is_contiguous()
        assert_as_defined(verify, logits, rule, 1)


@pytest.mark.parametrize("rule", RULES[:3], ids=str)
@pytest.mark.parametrize("offset", [-1e4, 1e4])
def test_large_logits(verify: Verify, rule: Rule, offset: float) -> None:
    """What is added to all logits changes nothing; it is a power of two's multiple, so that it rounds nothing either."""
    logits = (some_logits(3, 509, scale=64).round() / 16) + offset
    drafted, q_draft = a_draft(logits, rule, 2)
    at = turn(torch.device("cpu"), 2, temperature=1.0)
    found = verify(logits, drafted, at, rule, q_draft if rule.method == "rejection" else None)
    assert (int(found.accepted), int(found.following)) == by_definition(logits, drafted, at, rule, q_draft)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_only_one_possible_token(verify: Verify, rule: Rule) -> None:
    """All -inf but one: that one follows, whatever the noise."""
    logits = torch.full((2, 9_000), -inf)
    logits[0, 4], logits[1, 8_999] = -3.0, 2.0
    q_draft = torch.nn.functional.one_hot(torch.tensor([4]), 9_000).float()
    found = verify(logits, torch.tensor([4]), turn(torch.device("cpu"), 1), rule, q_draft)
    assert (int(found.accepted), int(found.following)) == (1, 8_999)
    assert found.statistics.entropy_nats.tolist() == [0, 0]


def test_ties_go_to_the_lowest_token(verify: Verify) -> None:
    """Greedy decoding takes the first of equal logits, within a tile and across tiles."""
    logits = torch.zeros(2, 20_000)
    logits[0, [17, 18, 15_000]] = 1.0
    logits[1, [8_191, 8_192]] = 1.0
    found = verify(logits, torch.tensor([17]), turn(torch.device("cpu"), 1), Rule())
    assert (int(found.accepted), int(found.following)) == (1, 8_191)
    assert found.statistics.margin.tolist() == [0, 0]


@pytest.mark.parametrize("rule", RULES[:2], ids=str)
def test_a_broken_row_stays_alone(verify: Verify, rule: Rule) -> None:
    """NaN behind the first rejected token changes neither what is emitted nor the statistics of other rows."""
    logits = some_logits(4, 509)
    drafted, _ = a_draft(logits, rule, 1)
    whole = verify(logits, drafted, turn(torch.device("cpu"), 3), rule)
    logits[3, 100] = torch.nan
    broken = verify(logits, drafted, turn(torch.device("cpu"), 3), rule)
    assert (int(broken.accepted), int(broken.following)) == (int(whole.accepted), int(whole.following))
    assert broken.statistics.entropy_nats.isnan().tolist() == [False, False, False, True]
    assert torch.equal(broken.statistics.entropy_nats[:3], whole.statistics.entropy_nats[:3])


def test_rejection_by_hand(verify: Verify) -> None:
    """p(x) = 1/4 and q(x) = 1/2: x stands if u < 1/2, else only token 1 is left, where p exceeds q."""
    logits = torch.tensor([[log(0.25), log(0.5), log(0.25)], [-inf, -inf, 0.0]])
    q_draft = torch.tensor([[0.5, 0.25, 0.25]])
    for s in range(20):
        u = uniform(s, torch.tensor([POSITION]), 1, Stream.ACCEPT, DRAW).item()
        found = verify(logits, torch.tensor([0]), turn(torch.device("cpu"), 1, s, 1.0), Rule("rejection"), q_draft)
        assert (int(found.accepted), int(found.following)) == ((1, 2) if u < 0.5 else (0, 1))


def test_nothing_left_over_is_no_nan(verify: Verify) -> None:
    """A draft token that the target excludes from a distribution otherwise its own: a possible token follows."""
    logits = torch.tensor([[0.0, -inf, 1.0], [0.0, 0.0, 0.0]])
    q_draft = logits[:1].softmax(-1) * (1 + 2**-20)
    found = verify(logits, torch.tensor([1]), turn(torch.device("cpu"), 1), Rule("rejection"), q_draft)
    assert int(found.accepted) == 0
    assert int(found.following) in (0, 2)


def emitted(verify: Verify, rule: Rule, target: Tensor, student: Tensor, rounds: int) -> Tensor:
    """Return the first emitted token of many rounds ``[rounds]``; position ``2 * round`` keys a round's noise."""
    draft_noise = gumbel(SEED, 2 * torch.arange(rounds), len(student), Stream.DRAFT, DRAW)
    drafted = (student.log() + draft_noise).argmax(-1)
    logits, q_draft = target.log().expand(2, -1), student[None] if rule.method == "rejection" else None
    tokens = drafted.clone()
    for i in range(rounds):
        at = turn(torch.device("cpu"), 1, temperature=1.0)._replace(position=torch.tensor(2 * i))
        found = verify(logits, drafted[i : i + 1], at, rule, q_draft)
        tokens[i] = tokens[i] if found.accepted else found.following
    return tokens


def counts(tokens: Tensor, vocab: int) -> Tensor:
    """Return how often each token was emitted ``[1, vocab]``."""
    return tokens.bincount(minlength=vocab)[None]


P_TARGET, Q_DRAFT = torch.tensor([0.4, 0.3, 0.15, 0.1, 0.05]), torch.tensor([0.2, 0.45, 0.05, 0.15, 0.15])
SAMPLING = (Rule("coupled"), Rule("rejection"))


@pytest.mark.parametrize("rule", SAMPLING, ids=str)
@pytest.mark.parametrize("verify", ["reference", pytest.param("kernel", marks=needs_gpu)], indirect=True)
def test_the_emitted_token_has_the_targets_law(verify: Verify, rule: Rule) -> None:
    """Chi-square over 1,500 rounds, false alarm 1e-6; with p and q swapped, rejection sampling is red in the same test."""
    statistic, threshold = chi_square(counts(emitted(verify, rule, P_TARGET, Q_DRAFT, 1_500), 5), P_TARGET[None])
    assert statistic < threshold
    if rule.method == "rejection":
        statistic, threshold = chi_square(counts(emitted(verify, rule, Q_DRAFT, P_TARGET, 500), 5), P_TARGET[None])
        assert statistic > threshold


@pytest.mark.parametrize("rule", SAMPLING, ids=str)
@pytest.mark.parametrize("verify", ["kernel"], indirect=True)
def test_the_kernels_emit_what_the_reference_does(verify: Verify, rule: Rule, monkeypatch: pytest.MonkeyPatch) -> None:
    """Round by round, so that they have the same law; the interpreter is too slow for a chi-square of its own."""
    monkeypatch.setattr(verify_triton, "TILE", 16)
    ours = emitted(verify, rule, P_TARGET, Q_DRAFT, 60)
    assert torch.equal(ours, emitted(reference.verify, rule, P_TARGET, Q_DRAFT, 60))


@pytest.mark.parametrize("verify", ["kernel"], indirect=True)
def test_many_coupled_samples_of_the_kernel(verify: Verify) -> None:
    """All of the reference's samples stand, so they are the kernel's; chi-square over 511 of them, false alarm 1e-6."""
    logits, positions = P_TARGET.log().expand(512, -1), POSITION + torch.arange(512)
    tokens = (logits + gumbel(SEED, positions, 5)).argmax(-1)
    found = verify(logits, tokens[:-1], turn(torch.device("cpu"), 511, temperature=1.0), Rule("coupled"))
    assert (int(found.accepted), int(found.following)) == (511, int(tokens[-1]))
    statistic, threshold = chi_square(counts(tokens[:-1], 5), P_TARGET[None])
    assert statistic < threshold
