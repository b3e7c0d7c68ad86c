"""Dispatch: from what verification found to the next arm, without leaving the device.

The state holds the features of a text as its table lists them, before they are clipped:

====================== ==================================================================================
0 to 4                 entropy, its moving average, top-1 probability, margin, accepted fraction
5, 6                   longest prompt-lookup match, share of the longest possible text that is written
7 to 6 + students      each student's moving acceptance
then as many           how many committed tokens each student's cache is behind
====================== ==================================================================================

A round with ``a`` accepted tokens emits ``n = a + 1``, whose entropies are ``h_0 ... h_a``. It changes the moving average ``m`` of the
entropy by ``m <- decay m + (1 - decay) h_i`` for every emitted token, and the moving acceptance of the student that drafted token ``i`` by
the same rule with ``i < a``, for the tokens that were judged: those up to the first rejected one. What follows an end-of-sequence token is
for the host to cut; no arm is chosen behind it.
"""

from collections.abc import Sequence
from math import inf
from typing import NamedTuple

import torch
from torch import Tensor

from dispatch_rl.kernels.verify import Verified

LOOKUP_LENGTH = 4
"""Longest run of tokens that prompt lookup compares."""
FIXED_FEATURES = 7
"""Features that do not belong to a student."""


class TextState(NamedTuple):
    """One text; :func:`dispatch` brings it up to date in place."""

    features: Tensor
    """The features before clipping, float32 ``[7 + 2 students]``."""
    tokens: Tensor
    """The text, prompt included, int64 ``[capacity]``; what lies behind its length is ignored."""
    lengths: Tensor
    """Its length, the prompt's and the longest possible one (tokens), int64 ``[3]``."""
    read: Tensor
    """How many tokens each student's cache holds, draft tokens included, int64 ``[students]``."""


class FeatureRules(NamedTuple):
    """How features move and where they end."""

    low: Tensor
    """Least values ``[features]``."""
    high: Tensor
    """Largest values ``[features]``."""
    average_decay: float
    """Weight of the past in the moving average of the entropy, per token."""
    acceptance_decay: float
    """Weight of the past in a student's moving acceptance, per draft token."""


class NetworkRule(NamedTuple):
    """``tanh`` layers and a linear one; the arm is the argmax, the lowest on ties."""

    weights: Tensor
    """Matrices for unscaled features, padded with zeros: float32 ``[layers, width, width]``, output first."""
    biases: Tensor
    """Vectors, padded with zeros: float32 ``[layers, width]``."""
    sizes: tuple[int, ...]
    """Number of outputs of each layer; the last is the number of arms."""


class ThresholdRule(NamedTuple):
    """Arm ``arms[i]`` where ``i`` limits are at or below the entropy."""

    limits: Tensor
    """Rising limits (nats), float32 ``[limits]``."""
    arms: Tensor
    """Arms, int64 ``[limits + 1]``."""


def network_rule(scale: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> NetworkRule:
    """Return the rule of an exported network, on the device of its tensors.

    Args:
        scale: Divisors of the features ``[features]``.
        weights: Matrices for scaled features ``[out, in]``, first layer first.
        biases: Vectors ``[out]``.
    """
    width = max(16, 1 << (max(len(scale), *(len(bias) for bias in biases)) - 1).bit_length())
    rule = NetworkRule(scale.new_zeros(len(biases), width, width), scale.new_zeros(len(biases), width), tuple(map(len, biases)))
    for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        rule.weights[layer, : weight.shape[0], : weight.shape[1]] = weight / scale if layer == 0 else weight
        rule.biases[layer, : len(bias)] = bias
    return rule


def threshold_rule(limits: Sequence[float], arms: Sequence[int], device: torch.device) -> ThresholdRule:
    """Return the rule of rising ``limits`` (nats), rounded up to float32: an entropy in float32 reaches one if and only if the other."""
    exact = torch.tensor(limits, dtype=torch.float64)
    rounded = exact.float()
    rounded = torch.where(rounded.double() < exact, torch.nextafter(rounded, torch.tensor(inf)), rounded)
    return ThresholdRule(rounded.to(device), torch.tensor(arms, device=device))


def dispatch(
    state: TextState,
    found: Verified,
    drafted: Tensor,
    students: Tensor,
    num_drafted: Tensor,
    rules: FeatureRules,
    rule: NetworkRule | ThresholdRule,
) -> Tensor:
    """Take a round into ``state`` and put the next arm into ``found.arm``.

    Args:
        state: The text before the round, with ``read`` as the draft left it.
        found: What :func:`dispatch_rl.kernels.verify.verify` found.
        drafted: Draft tokens ``[rows - 1]``.
        students: Which student drafted each, int64 ``[rows - 1]``; a number beyond the students stands for prompt lookup.
        num_drafted: Number of draft tokens ``[]``.
        rules: How features move.
        rule: How an arm is chosen.

    Returns:
        The observation that the arm was chosen by ``[features]``.
    """
    _take_in(state, found, drafted, students, num_drafted, rules)
    observation = state.features.clamp(rules.low, rules.high)
    found.arm.copy_(choose(observation, rule))
    return observation


def choose(observation: Tensor, rule: NetworkRule | ThresholdRule) -> Tensor:
    """Return the arm ``[]`` for an ``observation [features]``."""
    if isinstance(rule, ThresholdRule):
        # Written so that a NaN counts every limit, as a search among them does.
        return rule.arms.index_select(0, (~(observation[:1] < rule.limits)).sum().view(1))[0]
    x = torch.zeros_like(rule.biases[0])
    x[: len(observation)] = observation
    for weight, bias in zip(rule.weights[:-1], rule.biases[:-1], strict=True):
        x = torch.tanh(weight @ x + bias)
    return (rule.weights[-1] @ x + rule.biases[-1])[: rule.sizes[-1]].argmax()


def _take_in(state: TextState, found: Verified, drafted: Tensor, students: Tensor, num_drafted: Tensor, rules: FeatureRules) -> None:
    accepted, seen, features = found.accepted, found.statistics, state.features
    length, prompt, limit = state.lengths.unbind(0)
    row = torch.arange(len(drafted) + 1, device=drafted.device)
    mean = features[1]
    for i, entropy_nats in enumerate(seen.entropy_nats):
        moved = rules.average_decay * mean + (1 - rules.average_decay) * entropy_nats
        mean = torch.where(accepted >= i, moved, mean)
    count = len(state.read)
    acceptance = features[FIXED_FEATURES : FIXED_FEATURES + count].clone()
    for i in range(len(drafted)):
        judged = (students[i] == torch.arange(count, device=drafted.device)) & (i <= accepted) & (i < num_drafted)
        moved = rules.acceptance_decay * acceptance + (1 - rules.acceptance_decay) * (i < accepted)
        acceptance = torch.where(judged, moved, acceptance)
    emitted = torch.cat([drafted, drafted.new_zeros(1)]).where(row < accepted, found.following)
    places = length + row.clamp(max=accepted)
    state.tokens.index_copy_(0, places, emitted)
    state.read.clamp_(max=length + accepted)
    length += accepted + 1
    features[0], features[2], features[3] = (
        x.index_select(0, accepted.view(1))[0] for x in (seen.entropy_nats, seen.top1_probability, seen.margin)
    )
    features[1] = mean
    features[4] = torch.where(num_drafted > 0, accepted / num_drafted.clamp(min=1), 0)
    features[5] = lookup_match(state.tokens, length)
    features[6] = (length - prompt) / (limit - prompt)
    features[FIXED_FEATURES : FIXED_FEATURES + count] = acceptance
    features[FIXED_FEATURES + count :] = length - 1 - state.read


def lookup_match(tokens: Tensor, length: Tensor) -> Tensor:
    """Return the longest run, of at most :data:`LOOKUP_LENGTH`, that ends the text and stood in it before ``[]``.

    Args:
        tokens: The text and whatever lies behind it ``[capacity]``.
        length: Number of its tokens ``[]``.
    """
    place = torch.arange(len(tokens), device=tokens.device)
    longest, runs = torch.zeros_like(length), place < length - 1
    for back in range(LOOKUP_LENGTH):
        last = tokens.index_select(0, (length - 1 - back).clamp(min=0).view(1))
        runs = runs & (place >= back) & (tokens.roll(back) == last)
        longest = longest + runs.any()
    return longest
