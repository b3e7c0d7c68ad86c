"""What ``bench kernels`` measures: every operation by its kernel and by torch, and whether the two agree."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dispatch_rl.decoding.features import ACCEPTANCE_DECAY, AVERAGE_DECAY, feature_table
from dispatch_rl.errors import UserError
from dispatch_rl.kernels.dispatch import FeatureRules, NetworkRule, TextState, network_rule
from dispatch_rl.kernels.entropy import RowStatistics
from dispatch_rl.kernels.operations import REFERENCES, Operations
from dispatch_rl.kernels.verify import Rule, Turn, Verified

KERNEL, EAGER, COMPILED = "kernel", "torch eager", "torch.compile"
_STUDENTS = ("small", "medium", "large")
_CONTEXT = 2_048
"""Tokens of the text that the chain goes on with."""
_HEADS, _HEAD_DIM = ((40, 8), (12, 2)), 128
"""Heads of queries and of keys in R1-Distill-Qwen-32B and -1.5B."""
_COLD_BYTES = 256 << 20
"""More than the L2 cache of any GPU holds."""
LENGTHS = (512, 4_096)
"""Tokens of the contexts that attention goes over, in caches for twice as many as the longest."""

Run = Callable[[], Any]


@dataclass(frozen=True)
class Case:
    """One operation on one input."""

    operation: str
    rows: int
    columns: int
    """Of each row: tokens of the vocabulary, or of the context."""
    providers: dict[str, Run]
    """What computes it, by name."""
    moved_bytes: int
    """The fewest bytes that must be read and written in a call."""
    by_graph: bool
    """Whether it is so short that it is timed by replaying a CUDA graph."""
    calls: int = 1
    """How often a provider does it, each time on other memory, where what it reads must not lie in the L2 cache."""

    def check(self) -> None:
        """See that the kernel gives what torch gives.

        Raises:
            UserError: They differ.
        """
        ours, theirs = self.providers[KERNEL](), self.providers[EAGER]()
        if not _agree(ours, theirs):
            raise UserError(
                f"{self.operation} [{self.rows}, {self.columns}]: the kernel disagrees with its reference; no speed is reported"
            )


def _agree(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, Tensor):
        return _mixed_agree(ours, theirs)
    return _verified_agree(ours, theirs) if isinstance(ours, Verified) else _statistics_agree(ours, theirs)


def _statistics_agree(ours: RowStatistics, theirs: RowStatistics) -> bool:
    close = (torch.allclose(a, b, atol=1e-4, rtol=1e-5) for a, b in zip(ours, theirs, strict=True) if a.is_floating_point())
    return torch.equal(ours.argmax, theirs.argmax) and all(close)


def _verified_agree(ours: Verified, theirs: Verified) -> bool:
    return torch.equal(ours.packed[:3], theirs.packed[:3]) and _statistics_agree(ours.statistics, theirs.statistics)


def _mixed_agree(ours: Tensor, theirs: Tensor) -> bool:
    # Each rounds weights and results to bfloat16, which has 8 bits, on its own way.
    return bool((ours - theirs).abs().max() <= 2**-6 * theirs.abs().max())


def log_softmax_entropy(logits: Tensor) -> RowStatistics:
    """Return the statistics as one would write them down in torch."""
    x = logits.float()
    log_p = x.log_softmax(-1)
    best = x.topk(2, dim=-1)
    p = log_p.exp()
    return RowStatistics(-(p * log_p).sum(-1), p.amax(-1), best.values[:, 0] - best.values[:, 1], x.argmax(-1), x.logsumexp(-1))


def entropy_case(kernels: Operations, logits: Tensor, compiled: bool, by_graph: bool) -> Case:
    """Return the case of ``entropy`` on these logits."""
    rows, vocab = logits.shape
    providers: dict[str, Run] = {
        KERNEL: lambda: kernels.entropy(logits),
        EAGER: lambda: REFERENCES.entropy(logits),
        "torch log_softmax": lambda: log_softmax_entropy(logits),
    }
    if compiled:
        providers[COMPILED] = _compiled(lambda: REFERENCES.entropy(logits))
    return Case("entropy", rows, vocab, providers, logits.nbytes + rows * 24, by_graph)


def verify_case(kernels: Operations, logits: Tensor, rule: Rule, compiled: bool) -> Case:
    """Return the case of ``verify`` on these logits with a draft that stands whole if it is judged exactly."""
    rows, vocab = logits.shape
    turn = make_turn(logits.device, rows - 1)
    drafted = REFERENCES.verify(logits[:1], logits.new_empty(0, dtype=torch.int64), turn, rule).following.expand(rows - 1).contiguous()
    q_draft = logits[:-1].float().softmax(-1) if rule.method == "rejection" else None
    providers: dict[str, Run] = {
        KERNEL: lambda: kernels.verify(logits, drafted, turn, rule, q_draft),
        EAGER: lambda: REFERENCES.verify(logits, drafted, turn, rule, q_draft),
    }
    if compiled:
        providers[COMPILED] = _compiled(lambda: REFERENCES.verify(logits, drafted, turn, rule, q_draft))
    moved = logits.nbytes + rows * 24 + (0 if q_draft is None else q_draft.nbytes // max(1, rows - 1))
    name = f"verify {rule.method}" + (" top-k top-p" if rule.filters else "")
    return Case(name, rows, vocab, providers, moved, by_graph=True)


def chain_case(kernels: Operations, logits: Tensor) -> Case:
    """Return the case of coupled verification and dispatch by the largest network, one after the other."""
    rows, vocab = logits.shape
    device, rule, turn = logits.device, Rule("coupled"), make_turn(logits.device, rows - 1)
    drafted, students = torch.zeros(2, rows - 1, dtype=torch.int64, device=device)
    lengths, rules, network = torch.tensor([_CONTEXT, 64, 2 * _CONTEXT], device=device), feature_rules(device), largest_network(device)

    def chain(operations: Operations) -> Run:
        state = make_state(device)

        def run() -> Verified:
            # So that the text does not grow from one repetition to the next.
            state.lengths.copy_(lengths)
            found = operations.verify(logits, drafted, turn, rule)
            operations.dispatch(state, found, drafted, students, turn.num_drafted, rules, network)
            return found

        return run

    weights = network.weights.nbytes
    return Case(
        "verify coupled + dispatch", rows, vocab, {KERNEL: chain(kernels), EAGER: chain(REFERENCES)}, logits.nbytes + weights, by_graph=True
    )


def attention_cases(kernels: Operations, device: torch.device, queries: Sequence[int], lengths: Sequence[int]) -> list[Case]:
    """Return the cases of ``attention`` of so many queries over so many tokens, for every model's heads."""
    generator, capacity = torch.Generator(device).manual_seed(0), 2 * max(lengths)
    cold_bytes = _COLD_BYTES if device.type == "cuda" else 0
    # All cases share as many layers as the shortest context needs to be cold.
    elements = max(cold_bytes // 2 // min(lengths), 2 * _HEAD_DIM * _HEADS[0][1]) * capacity

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device, dtype=torch.bfloat16)

    memory = normal(elements)
    return [
        attention_case(kernels, normal(new, heads, _HEAD_DIM), memory.view(-1, 2 * kv_heads, capacity, _HEAD_DIM), length, cold_bytes)
        for heads, kv_heads in _HEADS
        for length in lengths
        for new in queries
    ]


def attention_case(kernels: Operations, q: Tensor, cache: Tensor, length: int, cold_bytes: int) -> Case:
    """Return the case of ``attention`` over the first ``length`` positions of every layer of ``cache [layers, heads, capacity, head_dim]``.

    Torch looks at a slice, so a graph of it stays at this length; or at the whole cache under a mask, which could be written anew.
    """
    new, heads, _ = q.shape
    kv_heads, capacity = cache.shape[1] // 2, cache.shape[2]
    used_bytes = cache[0, :, :length].numel() * cache.element_size()
    layers = [layer.chunk(2) for layer in cache[: max(1, -(-cold_bytes // used_bytes))]]
    on_device = torch.tensor([length], device=q.device)
    mask = torch.full((new, capacity), -torch.inf, dtype=q.dtype, device=q.device).triu(length - new + 1)

    def ours() -> Tensor:
        return [kernels.attention(q, keys, values, on_device) for keys, values in layers][-1]

    def by_torch(looked_at: int) -> Tensor:
        def attend(*keys_and_values: Tensor) -> Tensor:
            k, v = (x[None, :, :looked_at] for x in keys_and_values)
            seen = None if new == 1 and looked_at == length else mask[:, :looked_at]
            return F.scaled_dot_product_attention(q.transpose(0, 1)[None], k, v, attn_mask=seen, enable_gqa=True)[0].transpose(0, 1)

        return [attend(*layer) for layer in layers][-1]

    providers: dict[str, Run] = {
        KERNEL: ours,
        EAGER: lambda: by_torch(length),
        "torch graph": lambda: by_torch(length),
        "torch whole cache": lambda: by_torch(capacity),
    }
    moved = used_bytes + 2 * q.nbytes
    return Case(f"attention {heads}/{kv_heads}, {length} tokens", new, length, providers, moved, by_graph=True, calls=len(layers))


def make_turn(device: torch.device, num_drafted: int) -> Turn:
    """Return a turn at temperature 0.7."""
    return Turn.of(torch.tensor([7, _CONTEXT, 3, num_drafted], device=device), torch.tensor(0.7, device=device))


def make_state(device: torch.device) -> TextState:
    """Return a text that is half written."""
    text = torch.randint(1_000, (2 * _CONTEXT,), device=device)
    numbers = torch.zeros(len(feature_table(_STUDENTS)), device=device)
    lengths = torch.tensor([_CONTEXT, 64, 2 * _CONTEXT], device=device)
    return TextState(numbers, text, lengths, lengths[:1].repeat(len(_STUDENTS)))


def feature_rules(device: torch.device) -> FeatureRules:
    """Return the rules of the feature table."""
    table = feature_table(_STUDENTS)
    low, high = (torch.tensor([getattr(feature, end) for feature in table], dtype=torch.float32, device=device) for end in ("low", "high"))
    return FeatureRules(low, high, AVERAGE_DECAY, ACCEPTANCE_DECAY)


def largest_network(device: torch.device) -> NetworkRule:
    """Return a random network of three hidden layers of 256."""
    generator = torch.Generator().manual_seed(0)
    features = len(feature_table(_STUDENTS))
    sizes = (features, 256, 256, 256, 5)
    weights = [(torch.randn(out, into, generator=generator) / into**0.5).to(device) for into, out in pairwise(sizes)]
    return network_rule(torch.ones(features, device=device), weights, [torch.zeros(out, device=device) for out in sizes[1:]])


def _compiled(run: Run) -> Run:
    compiled: Run = torch.compile(run)
    return compiled


def make_cases(
    kernels: Operations, device: torch.device, many: int, few: int, vocab: int, compiled: bool, lengths: Sequence[int] = LENGTHS
) -> list[Case]:
    """Return all cases on normal logits of standard deviation 3 in bfloat16, and of attention over contexts of these ``lengths``."""
    generator = torch.Generator(device).manual_seed(0)

    def logits(rows: int) -> Tensor:
        return 3 * torch.randn(rows, vocab, generator=generator, device=device, dtype=torch.bfloat16)

    short = logits(few)
    rules = (Rule(), Rule("coupled"), Rule("coupled", 50, 0.95), Rule("rejection"))
    return [
        entropy_case(kernels, logits(many), compiled, by_graph=False),
        entropy_case(kernels, short, compiled, by_graph=True),
        *(verify_case(kernels, short, rule, compiled) for rule in rules),
        chain_case(kernels, short),
        *attention_cases(kernels, device, (1, few), lengths),
    ]
