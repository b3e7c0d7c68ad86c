"""One call of every operation on small inputs, as the tests of compilation and of graph capture make them."""

from collections.abc import Callable
from itertools import pairwise

import torch

from dispatch_rl.decoding.static import MOST
from dispatch_rl.kernels import (
    attention_triton,
    dispatch_triton,
    entropy_triton,
    noise_triton,
    rotate_and_store_triton,
    swiglu_triton,
    verify_triton,
)
from dispatch_rl.kernels.dispatch import FeatureRules, NetworkRule, TextState, ThresholdRule, network_rule, threshold_rule
from dispatch_rl.kernels.noise import Stream
from dispatch_rl.kernels.rotate_and_store import HeadNorms
from dispatch_rl.kernels.verify import HEADER, Rule, Turn, Verified

ROWS, VOCAB = 6, 152_064


def turn(device: torch.device, num_drafted: int = ROWS - 1, seed: int = 7, temperature: float = 0.7) -> Turn:
    """Return a turn on ``device``."""
    integers = torch.tensor([seed, 11, 3, num_drafted], device=device)
    return Turn.of(integers, torch.tensor(temperature, device=device))


def _entropy(rows: int, dtype: torch.dtype) -> None:
    entropy_triton.entropy(torch.zeros(rows, VOCAB, dtype=dtype))


def _verify(rule: Rule, rows: int = ROWS) -> None:
    logits, drafted = torch.zeros(rows, VOCAB, dtype=torch.bfloat16), torch.zeros(rows - 1, dtype=torch.int64)
    q_draft = torch.full((rows - 1, VOCAB), 1 / VOCAB) if rule.method == "rejection" else None
    verify_triton.verify(logits, drafted, turn(logits.device), rule, q_draft)


def _dispatch(rule: NetworkRule | ThresholdRule) -> None:
    integers = torch.zeros(64, dtype=torch.int64)
    state = TextState(torch.zeros(13), integers, torch.tensor([20, 10, 60]), integers[:3])
    rules = FeatureRules(torch.zeros(13), torch.ones(13), 0.8, 0.9)
    found = Verified(torch.zeros(HEADER + 3 * ROWS, dtype=torch.int64))
    dispatch_triton.dispatch(state, found, integers[: ROWS - 1], integers[: ROWS - 1], integers[0], rules, rule)


def _largest_network() -> NetworkRule:
    sizes = (13, 256, 256, 256, 5)
    weights = [torch.zeros(out, into) for into, out in pairwise(sizes)]
    return network_rule(torch.ones(13), weights, [torch.zeros(out) for out in sizes[1:]])


def _uniform() -> None:
    one = torch.tensor(1)
    noise_triton.uniform(one, torch.arange(3), 64, Stream.TOKEN, one)


def _attention(dtype: torch.dtype, queries: int, heads: tuple[int, int] = (40, 8), head_dim: int = 128, tree: bool = False) -> None:
    keys, values = torch.zeros(2 * heads[1], 8_192, head_dim, dtype=dtype).chunk(2)
    visible = torch.ones(queries, queries, dtype=torch.bool) if tree else None
    attention_triton.attention(torch.zeros(queries, heads[0], head_dim, dtype=dtype), keys, values, torch.tensor([512]), visible)


def _rotate_and_store(dtype: torch.dtype, tokens: int, heads: tuple[int, int], head_dim: int = 128, normed: bool = False) -> None:
    qkv, buffer = torch.zeros(tokens, heads[0] + 2 * heads[1], head_dim, dtype=dtype), torch.zeros(2 * heads[1], 64, head_dim, dtype=dtype)
    cos, sin = torch.zeros(2, tokens, 1, head_dim, dtype=dtype)
    weight = torch.ones(head_dim, dtype=dtype)
    norms = HeadNorms(weight, weight, 1e-6) if normed else None
    rotate_and_store_triton.rotate_and_store(qkv, cos, sin, buffer, torch.arange(tokens), norms)


def _swiglu(dtype: torch.dtype, tokens: int, size: int) -> None:
    swiglu_triton.swiglu(torch.zeros(tokens, 2 * size, dtype=dtype))


CALLS: dict[str, Callable[[], None]] = {
    "uniform": _uniform,
    "entropy of few rows": lambda: _entropy(ROWS, torch.bfloat16),
    "entropy of many rows": lambda: _entropy(entropy_triton.MANY_ROWS, torch.bfloat16),
    "entropy of many rows in float32": lambda: _entropy(entropy_triton.MANY_ROWS, torch.float32),
    "attention of one query": lambda: _attention(torch.bfloat16, 1),
    "attention of one query of a small model": lambda: _attention(torch.bfloat16, 1, (12, 2)),
    "attention of a draft": lambda: _attention(torch.bfloat16, 17),
    "attention of a tree in float16": lambda: _attention(torch.float16, 6, tree=True),
    "attention of a tree in float32": lambda: _attention(torch.float32, 17, tree=True),
    "attention of the longest captured pass": lambda: _attention(torch.bfloat16, MOST, tree=True),
    "attention of odd heads": lambda: _attention(torch.bfloat16, 6, (14, 2), 80),
    "attention of the smallest heads": lambda: _attention(torch.float32, 2, (4, 4), 16),
    "dispatch by a network": lambda: _dispatch(_largest_network()),
    "dispatch by thresholds": lambda: _dispatch(threshold_rule([0.4, 0.8], [0, 1, 2], torch.device("cpu"))),
    "rotate and store": lambda: _rotate_and_store(torch.bfloat16, 1, (12, 2)),
    "rotate and store with norms": lambda: _rotate_and_store(torch.bfloat16, 6, (32, 8), normed=True),
    "rotate and store odd heads in float16": lambda: _rotate_and_store(torch.float16, 17, (14, 2), 80),
    "rotate and store one head in float32": lambda: _rotate_and_store(torch.float32, 2, (1, 1), 64, normed=True),
    "swiglu": lambda: _swiglu(torch.bfloat16, 1, 8_960),
    "swiglu in float16": lambda: _swiglu(torch.float16, 6, 27_648),
    "swiglu of an odd size in float32": lambda: _swiglu(torch.float32, 17, 513),
    "verify greedy": lambda: _verify(Rule()),
    "verify the longest captured pass": lambda: _verify(Rule("coupled"), MOST),
    "verify coupled": lambda: _verify(Rule("coupled")),
    "verify coupled with filters": lambda: _verify(Rule("coupled", 50, 0.9)),
    "verify rejection": lambda: _verify(Rule("rejection")),
    "verify rejection with filters": lambda: _verify(Rule("rejection", 50, 0.9)),
}
