"""Dispatch on the device does what the host does: the feature tracker, prompt lookup and the policies, round by round."""

# mypy: disable-error-code="import-untyped, untyped-decorator"

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from math import inf, nan
from random import Random

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from dispatch_rl.decoding.features import ACCEPTANCE_DECAY, AVERAGE_DECAY, FeatureTracker, feature_table
from dispatch_rl.decoding.lookup import LookupIndex
from dispatch_rl.decoding.rounds import Round
from dispatch_rl.kernels import dispatch as reference
from dispatch_rl.kernels import dispatch_triton
from dispatch_rl.kernels.dispatch import FeatureRules, NetworkRule, TextState, ThresholdRule, network_rule, threshold_rule
from dispatch_rl.kernels.entropy import entropy
from dispatch_rl.kernels.verify import Rule, Verified, verify
from dispatch_rl.policies.network import NetworkPolicy
from dispatch_rl.policies.threshold import ThresholdPolicy
from tests.helpers import DEVICE, assert_no_worse_than_torch, poisoned
from tests.kernel_calls import turn

STUDENTS = ("small", "medium", "large")
LOOKUP_NUMBER = len(STUDENTS)
PROMPT, LIMIT = 5, 200
Dispatch = Callable[..., Tensor]


@triton.jit
def _tanh_kernel(x, y, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    place = tl.arange(0, SIZE)
    tl.store(y + place, dispatch_triton._tanh(tl.load(x + place)))


@pytest.fixture(params=["reference", "kernel"])
def dispatch(request: pytest.FixtureRequest) -> Dispatch:
    """The reference, and the kernel: compiled where there is a GPU, else in Triton's interpreter, in poisoned memory."""
    if request.param == "reference":
        return reference.dispatch

    def kernel(
        state: TextState, found: Verified, drafted: Tensor, students: Tensor, count: Tensor, rules: FeatureRules, rule: object
    ) -> Tensor:
        there = TextState(*(value.to(DEVICE) for value in state))
        packed = Verified(found.packed.to(DEVICE))
        bounds = rules._replace(low=rules.low.to(DEVICE), high=rules.high.to(DEVICE))
        with poisoned():
            observation = dispatch_triton.dispatch(
                there, packed, drafted.to(DEVICE), students.to(DEVICE), count.to(DEVICE), bounds, on_device(rule)
            )
        for ours, theirs in zip(state, there, strict=True):
            ours.copy_(theirs)
        found.packed.copy_(packed.packed)
        return observation.cpu()

    return kernel


def on_device(rule: object) -> NetworkRule | ThresholdRule:
    """Return a rule with its tensors where kernels are tested."""
    if isinstance(rule, NetworkRule):
        return rule._replace(weights=rule.weights.to(DEVICE), biases=rule.biases.to(DEVICE))
    assert isinstance(rule, ThresholdRule)
    return ThresholdRule(*(value.to(DEVICE) for value in rule))


def feature_rules() -> FeatureRules:
    """Return the rules of the feature table."""
    table = feature_table(STUDENTS)
    low, high = (torch.tensor([getattr(f, end) for f in table], dtype=torch.float32) for end in ("low", "high"))
    return FeatureRules(low, high, AVERAGE_DECAY, ACCEPTANCE_DECAY)


def make_policy(widths: tuple[int, ...], seed: int = 0) -> NetworkPolicy:
    """Return a random network over the features with five arms."""
    rng, table = np.random.default_rng(seed), feature_table(STUDENTS)
    sizes = (len(table), *widths, 5)
    weights = [rng.normal(scale=into**-0.5, size=(out, into)).astype(np.float32) for into, out in pairwise(sizes)]
    biases = [rng.normal(scale=0.25, size=out).astype(np.float32) for out in sizes[1:]]
    return NetworkPolicy(np.array([f.scale for f in table], dtype=np.float32), weights, biases)


def packed(policy: NetworkPolicy) -> NetworkRule:
    """Return a policy's rule."""
    weights, biases = policy.layers()
    scale = torch.from_numpy(policy._tensors["scale"])
    return network_rule(scale, [torch.from_numpy(w) for w in weights], [torch.from_numpy(b) for b in biases])


@dataclass
class Host:
    """What the host keeps of a text, and the same as a device state."""

    tracker: FeatureTracker
    lookup: LookupIndex
    tokens: list[int]
    state: TextState

    def observation(self) -> np.ndarray:
        """Return the host's observation."""
        lags = (len(self.tokens) - 1 - self.state.read).tolist()
        match, _ = self.lookup.find([])
        return self.tracker.observation(match, (len(self.tokens) - PROMPT) / (LIMIT - PROMPT), lags)


def begin(rng: Random, alphabet: int = 4) -> Host:
    """Begin a text behind its first token."""
    tracker, lookup = FeatureTracker(STUDENTS), LookupIndex()
    tracker.start(1.0, 0.5, 2.0)
    tokens = [rng.randrange(alphabet) for _ in range(PROMPT + 1)]
    lookup.extend(tokens)
    text = torch.full((LIMIT + 3,), 99)
    text[: len(tokens)] = torch.tensor(tokens)
    features = torch.tensor([1.0, 1.0, 0.5, 2.0, 0.0, 0.0, 0.0] + [0.5] * len(STUDENTS) + [0.0] * len(STUDENTS))
    read = torch.tensor([0, 3, PROMPT])
    return Host(tracker, lookup, tokens, TextState(features, text, torch.tensor([len(tokens), PROMPT, LIMIT]), read))


def play(host: Host, rng: Random, rows: int, alphabet: int = 4) -> tuple[Verified, Tensor, Tensor, Tensor]:
    """Do a round on the host and return what the device is told of it; the draft may be shorter than the rows."""
    length = rng.randint(0, rows - 1)
    logits = 2 * torch.randn(rows, alphabet, generator=torch.Generator().manual_seed(rng.randrange(2**31)))
    drafted = logits.argmax(-1)[:-1].clone()
    if length:
        drafted[rng.randrange(length)] = rng.randrange(alphabet)
    students = torch.tensor([rng.randrange(LOOKUP_NUMBER + 1) for _ in range(rows - 1)], dtype=torch.int64)
    found = verify(logits, drafted, turn(torch.device("cpu"), length), Rule())
    accepted, seen = int(found.accepted), entropy(logits)
    emitted = [*drafted[:accepted].tolist(), int(found.following)]
    names = tuple([*STUDENTS, "lookup"][i] for i in students[:length])
    entropies = tuple(seen.entropy_nats[: len(emitted)].tolist())
    record = Round("x", names, tuple(drafted[:length].tolist()), accepted, tuple(emitted), entropies, 0.0, 0.0, 0.0)
    for student in set(students[:length].tolist()) - {LOOKUP_NUMBER}:
        host.state.read[student] = len(host.tokens) + rng.randint(0, length - 1)
    host.tracker.update(record, float(seen.top1_probability[accepted]), float(seen.margin[accepted]))
    host.tokens += emitted
    host.lookup.extend(emitted)
    return found, drafted, students, torch.tensor(length)


@pytest.mark.parametrize("rule", ["network", "thresholds"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_device_decides_as_the_host_does(dispatch: Dispatch, rule: str, seed: int) -> None:
    """Over twelve random rounds, observation, text and caches are the host's, and so is the arm."""
    rng = Random(seed)
    host, network = begin(rng), make_policy((32, 20), seed)
    policy = network if rule == "network" else ThresholdPolicy((0.4, 0.8), (3, 0, 4))
    choice = packed(network) if rule == "network" else threshold_rule((0.4, 0.8), (3, 0, 4), torch.device("cpu"))
    for _ in range(12):
        found, *draft = play(host, rng, rows=5)
        observation = dispatch(host.state, found, *draft, feature_rules(), choice)
        expected = host.observation()
        np.testing.assert_allclose(observation.numpy(), expected, rtol=1e-6, atol=1e-6)
        assert int(found.arm) == policy(expected)
        assert host.state.tokens[: len(host.tokens)].tolist() == host.tokens
        assert (host.state.tokens[len(host.tokens) :] == 99).all()
        assert host.state.lengths.tolist() == [len(host.tokens), PROMPT, LIMIT]


@pytest.mark.parametrize("widths", [(), (64,), (256, 256, 256), (100, 256, 3)])
def test_networks_of_every_size(dispatch: Dispatch, widths: tuple[int, ...]) -> None:
    """From a linear one to three hidden layers of 256: the policy's own arm."""
    rng, arms = Random(7), set()
    for seed in range(6):
        policy = make_policy(widths, seed)
        host = begin(rng)
        host.state.features[1] = host.tracker._entropy_mean = 3.0 * seed
        found, *draft = play(host, rng, rows=3)
        dispatch(host.state, found, *draft, feature_rules(), packed(policy))
        assert int(found.arm) == policy(host.observation())
        arms.add(int(found.arm))
    assert len(arms) > 1


def test_the_networks_tanh_is_as_exact_as_torchs() -> None:
    """From -12 to 12 and close to zero, against float64."""
    for end in (12.0, 0.5, 1e-3):
        x = torch.linspace(-end, end, 1_024)
        found = torch.empty(1_024, device=DEVICE)
        _tanh_kernel[(1,)](x.to(DEVICE), found, 1_024)
        assert_no_worse_than_torch(found.cpu(), torch.tanh(x), torch.tanh(x.double()))


@pytest.mark.parametrize("entropy_nats", [0.0, 0.39999998, 0.4, 0.40000004, 0.79999995, 0.8, 5.0, nan])
def test_thresholds_to_the_last_bit(dispatch: Dispatch, entropy_nats: float) -> None:
    """Limits that float32 does not hold part the entropies where the host's search does; NaN counts every limit."""
    limits, arms = [0.4, 0.8, 0.1 + 0.8], [2, 0, 1, 3]
    host = begin(Random(0))
    found, *draft = play(host, Random(0), rows=1)
    found.statistics.entropy_nats.fill_(entropy_nats)
    dispatch(host.state, found, *draft, feature_rules(), threshold_rule(limits, arms, torch.device("cpu")))
    assert int(found.arm) == arms[bisect_right(limits, float(np.float32(entropy_nats)))]


def test_a_fixed_arm_is_a_rule_without_limits(dispatch: Dispatch) -> None:
    """No limit and one arm."""
    host = begin(Random(0))
    found, *draft = play(host, Random(0), rows=2)
    dispatch(host.state, found, *draft, feature_rules(), threshold_rule([], [4], torch.device("cpu")))
    assert int(found.arm) == 4


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of numpy, in the interpreter
@pytest.mark.parametrize("value", [nan, inf])
def test_broken_statistics_give_a_valid_arm(dispatch: Dispatch, value: float) -> None:
    """NaN leads to the first arm, an infinite margin to the bound of the table."""
    host = begin(Random(0))
    found, *draft = play(host, Random(0), rows=1)
    found.statistics.margin.fill_(value)
    observation = dispatch(host.state, found, *draft, feature_rules(), packed(make_policy((8,))))
    assert observation[3].isnan() if value != value else observation[3] == 20
    assert 0 <= int(found.arm) < 5
    assert value == inf or int(found.arm) == 0


@pytest.mark.parametrize("tied", [(0, 1, 2, 3, 4), (2, 4)])
def test_ties_go_to_the_lowest_arm(dispatch: Dispatch, tied: tuple[int, ...]) -> None:
    """Equal outputs, as a network without weights has them."""
    biases = torch.zeros(5)
    biases[list(tied)] = 1.0
    host = begin(Random(0))
    found, *draft = play(host, Random(0), rows=1)
    dispatch(host.state, found, *draft, feature_rules(), network_rule(torch.ones(13), [torch.zeros(5, 13)], [biases]))
    assert int(found.arm) == tied[0]


def test_lookup_in_a_long_text(dispatch: Dispatch, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text of several blocks: the match found is the index's, wherever it stands, across the edges of blocks too."""
    monkeypatch.setattr(dispatch_triton, "BLOCK", 16)
    rng = Random(4)
    matches = set()
    for _ in range(10):
        host = begin(rng, alphabet=7)
        for _ in range(rng.randint(1, 25)):
            found, *draft = play(host, rng, rows=6, alphabet=7)
            length = len(host.tokens)
            host.state.tokens[:length] = torch.tensor(host.tokens)
            host.state.lengths[0] = length - int(found.accepted) - 1
        observation = dispatch(host.state, found, *draft, feature_rules(), threshold_rule([], [0], torch.device("cpu")))
        assert observation[5] == host.lookup.find([])[0]
        matches.add(int(observation[5]))
    assert len(matches) > 1


def test_a_network_that_is_too_deep_is_refused() -> None:
    """The kernel knows three hidden layers."""
    with pytest.raises(ValueError, match="up to 3 hidden layers, not 4"):
        dispatch_triton._four((8, 8, 8, 8, 5))
