"""Triton kernel of :func:`dispatch_rl.kernels.dispatch.dispatch`: one launch of one program, since all of it is a few thousand numbers.

Numbers that the whole program must see pass through global memory, with a barrier in between: the features between update and
observation, and every layer's outputs. The largest network (three hidden layers of 256) is half a mebibyte of weights, read once.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call, import-untyped"

import torch
import triton
import triton.language as tl
from torch import Tensor

from dispatch_rl.kernels.dispatch import FIXED_FEATURES, LOOKUP_LENGTH, FeatureRules, NetworkRule, TextState, ThresholdRule
from dispatch_rl.kernels.entropy_triton import OPTIONS
from dispatch_rl.kernels.verify import HEADER, Verified

BLOCK = 4_096
"""Tokens of the text that are searched at a time."""
OUTPUTS, INPUTS = 64, 128
"""Outputs of a layer that are computed at a time, and inputs: a row of 128 numbers is what one warp reads at once."""

_FIXED, _LOOKUP = tl.constexpr(FIXED_FEATURES), tl.constexpr(LOOKUP_LENGTH)
_NOWHERE = tl.constexpr(2**31 - 1)


def dispatch(
    state: TextState,
    found: Verified,
    drafted: Tensor,
    students: Tensor,
    num_drafted: Tensor,
    rules: FeatureRules,
    rule: NetworkRule | ThresholdRule,
) -> Tensor:
    """Take a round into ``state`` and put the next arm into ``found.arm``, as the reference does."""
    count, features = len(state.read), len(state.features)
    observation = torch.empty_like(state.features)
    network = isinstance(rule, NetworkRule)
    layers, width = rule.biases.shape if isinstance(rule, NetworkRule) else (0, triton.next_power_of_2(len(rule.limits) + 1))
    scratch = torch.empty((2, width), device=observation.device)
    first, second = (rule.weights, rule.biases) if isinstance(rule, NetworkRule) else (rule.limits, rule.arms)
    sizes = rule.sizes if isinstance(rule, NetworkRule) else (len(rule.limits),)
    with torch.cuda.device_of(observation):
        _dispatch_kernel[(1,)](
            *state, found.packed, found.statistics.entropy_nats, found.rows, drafted, students, num_drafted,
            rules.low, rules.high, observation, first, second, scratch, count, features,
            HEADER, rules.average_decay, rules.acceptance_decay, network, layers, width, *_four(sizes), OUTPUTS, min(width, INPUTS), BLOCK,
            triton.next_power_of_2(found.rows), triton.next_power_of_2(count), triton.next_power_of_2(features), num_warps=16, **OPTIONS,
        )  # fmt: skip
    return observation


def _four(sizes: tuple[int, ...]) -> tuple[int, ...]:
    """Return the numbers of outputs of the layers, as the kernel's four arguments; it looks at no more than there are layers."""
    if len(sizes) > 4:
        raise ValueError(f"the kernel runs up to 3 hidden layers, not {len(sizes) - 1}")
    return (*sizes, 1, 1, 1)[:4]


@triton.jit
def _moved(average, new, DECAY: tl.constexpr):
    return DECAY * average + (1.0 - DECAY) * new


@triton.jit
def _take_in(
    features, tokens, lengths, read, packed, numbers, rows, drafted, students, num_drafted, count,
    AVERAGE_DECAY: tl.constexpr, ACCEPTANCE_DECAY: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, STUDENTS: tl.constexpr,
):  # fmt: skip
    """Bring the state up to date."""
    accepted, drafts, length, prompt = tl.load(packed), tl.load(num_drafted), tl.load(lengths), tl.load(lengths + 1)
    mean = tl.load(features + 1)
    for i in range((accepted + 1).to(tl.int32)):
        mean = _moved(mean, tl.load(numbers + i), AVERAGE_DECAY)
    student = tl.arange(0, STUDENTS)
    here = student < count
    acceptance = tl.load(features + _FIXED + student, mask=here, other=0.0)
    for i in range(tl.minimum(accepted + 1, drafts).to(tl.int32)):
        stood = tl.where(i < accepted, 1.0, 0.0)
        acceptance = tl.where(student == tl.load(students + i), _moved(acceptance, stood, ACCEPTANCE_DECAY), acceptance)
    row = tl.arange(0, ROWS)
    tl.store(tokens + length + row, tl.load(drafted + row, mask=row < accepted, other=0), mask=row < accepted)
    tl.store(tokens + length + accepted, tl.load(packed + 1))
    behind = tl.minimum(tl.load(read + student, mask=here, other=0), length + accepted)
    tl.store(read + student, behind, mask=here)
    length += accepted + 1
    tl.store(features, tl.load(numbers + accepted))
    tl.store(features + 1, mean)
    tl.store(features + 2, tl.load(numbers + rows + accepted))
    tl.store(features + 3, tl.load(numbers + 2 * rows + accepted))
    tl.store(features + 4, tl.div_rn(accepted.to(tl.float32), tl.maximum(drafts, 1).to(tl.float32)))
    tl.store(features + 6, tl.div_rn((length - prompt).to(tl.float32), (tl.load(lengths + 2) - prompt).to(tl.float32)))
    tl.store(features + _FIXED + student, acceptance, mask=here)
    tl.store(features + _FIXED + count + student, (length - 1 - behind).to(tl.float32), mask=here)
    tl.debug_barrier()
    tl.store(lengths, length)
    tl.store(features + 5, _lookup_match(tokens, length, BLOCK).to(tl.float32))


@triton.jit
def _lookup_match(tokens, length, BLOCK: tl.constexpr):
    """Return the longest run that ends the text and stood in it before."""
    inside = tl.arange(0, BLOCK)
    longest = tl.zeros([BLOCK], tl.int32)
    for start in range(0, (length - 1).to(tl.int32), BLOCK):
        place = start + inside
        runs = place < length - 1
        run = tl.zeros([BLOCK], tl.int32)
        for back in tl.static_range(_LOOKUP):
            runs = runs & (place >= back)
            last = tl.load(tokens + tl.maximum(length - 1 - back, 0))
            runs = runs & (tl.load(tokens + place - back, mask=runs, other=0) == last)
            run += runs.to(tl.int32)
        longest = tl.maximum(longest, run)
    return tl.max(longest, axis=0)


@triton.jit
def _tanh(x):
    """Return the hyperbolic tangent: its series where ``1 - 2 / (exp(2 |x|) + 1)`` would cancel."""
    size = tl.abs(x)
    square = x * x
    series = x * (1 + square * (-1 / 3 + square * (2 / 15 + square * (-17 / 315 + square * (62 / 2835 - square * (1382 / 155925))))))
    far = 1 - 2 / (tl.exp(2 * tl.minimum(size, 20.0)) + 1)
    near_or_far = tl.where(size < 0.4, series, tl.where(x < 0, -far, far))
    return tl.where(x == x, near_or_far, x)


@triton.jit
def _layer(x, inputs, weights, biases, y, size, WIDTH: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr):
    """Write a layer's sums for the ``inputs`` numbers at ``x`` to ``y``."""
    for start in range(0, size, OUTPUTS):
        row = start + tl.arange(0, OUTPUTS)
        sums = tl.zeros([OUTPUTS, INPUTS], tl.float32)
        for begin in tl.static_range(0, WIDTH, INPUTS):
            column = begin + tl.arange(0, INPUTS)
            inside = (row[:, None] < size) & (column[None, :] < inputs)
            weight = tl.load(weights + row[:, None] * WIDTH + column[None, :], mask=inside, other=0.0)
            sums += weight * tl.load(x + column, mask=column < inputs, other=0.0)[None, :]
        tl.store(y + row, tl.sum(sums, axis=1) + tl.load(biases + row, mask=row < size, other=0.0), mask=row < size)
    tl.debug_barrier()


@triton.jit
def _network(
    observation, weights, biases, scratch, features,
    LAYERS: tl.constexpr, WIDTH: tl.constexpr, S0: tl.constexpr, S1: tl.constexpr, S2: tl.constexpr, S3: tl.constexpr,
    OUTPUTS: tl.constexpr, INPUTS: tl.constexpr,
):  # fmt: skip
    """Return the arm; layers write to the two halves of ``scratch`` in turn."""
    unit = tl.arange(0, WIDTH)
    x, size = observation, features
    for layer in tl.static_range(LAYERS):
        y, inputs = scratch + (layer % 2) * WIDTH, size
        size = S0 if layer == 0 else (S1 if layer == 1 else (S2 if layer == 2 else S3))
        _layer(x, inputs, weights + layer * WIDTH * WIDTH, biases + layer * WIDTH, y, size, WIDTH, OUTPUTS, INPUTS)
        # Here a thread has one number; behind a layer's sums every thread of a warp would compute the same.
        outputs = tl.load(y + unit, mask=unit < size, other=0.0)
        if layer < LAYERS - 1:
            tl.store(y + unit, _tanh(outputs), mask=unit < size)
            tl.debug_barrier()
        x = y
    best = tl.max(tl.where(unit < size, outputs, -float("inf")), axis=0)
    arm = tl.min(tl.where((outputs == best) & (unit < size), unit, _NOWHERE), axis=0)
    # Where nothing is a number, the first arm, as the reference has it.
    return tl.where(arm == _NOWHERE, 0, arm)


@triton.jit
def _threshold(entropy_nats, limits, arms, COUNT: tl.constexpr, WIDTH: tl.constexpr):
    place = tl.arange(0, WIDTH)
    below = entropy_nats < tl.load(limits + place, mask=place < COUNT, other=float("inf"))
    return tl.load(arms + tl.sum(tl.where((below == 0) & (place < COUNT), 1, 0), axis=0))


@triton.jit
def _dispatch_kernel(
    features, tokens, lengths, read, packed, numbers, rows, drafted, students, num_drafted, low, high, observation,
    first, second, scratch, count, num_features,
    HEADER: tl.constexpr, AVERAGE_DECAY: tl.constexpr, ACCEPTANCE_DECAY: tl.constexpr, NETWORK: tl.constexpr, LAYERS: tl.constexpr,
    WIDTH: tl.constexpr, S0: tl.constexpr, S1: tl.constexpr, S2: tl.constexpr, S3: tl.constexpr, OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, STUDENTS: tl.constexpr, FEATURES: tl.constexpr,
):  # fmt: skip
    _take_in(
        features, tokens, lengths, read, packed, numbers, rows, drafted, students, num_drafted, count,
        AVERAGE_DECAY, ACCEPTANCE_DECAY, BLOCK, ROWS, STUDENTS,
    )  # fmt: skip
    tl.debug_barrier()
    feature = tl.arange(0, FEATURES)
    mask = feature < num_features
    value = tl.load(features + feature, mask=mask, other=0.0)
    least, most = tl.load(low + feature, mask=mask, other=0.0), tl.load(high + feature, mask=mask, other=0.0)
    value = tl.where(value < least, least, tl.where(value > most, most, value))
    tl.store(observation + feature, value, mask=mask)
    tl.debug_barrier()
    if NETWORK:
        arm = _network(observation, first, second, scratch, num_features, LAYERS, WIDTH, S0, S1, S2, S3, OUTPUTS, INPUTS).to(tl.int64)
    else:
        arm = _threshold(tl.load(observation), first, second, S0, WIDTH)
    tl.store(packed + 2, arm)
