"""What ``bench kernels`` measures: every operation by its kernel and by torch, and whether the two agree."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from dispatch_rl.bench.case import COMPILED, EAGER, KERNEL, Case, Run, in_torch_compile
from dispatch_rl.bench.layer_cases import LENGTHS, layer_cases
from dispatch_rl.decoding.features import ACCEPTANCE_DECAY, AVERAGE_DECAY, feature_table
from dispatch_rl.kernels.dispatch import FeatureRules, NetworkRule, TextState, network_rule
from dispatch_rl.kernels.entropy import RowStatistics
from dispatch_rl.kernels.operations import REFERENCES, Operations
from dispatch_rl.kernels.verify import Rule, Turn, Verified

_STUDENTS = ("small", "medium", "large")
_CONTEXT = 2_048
"""Tokens of the text that the chain goes on with."""


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
        providers[COMPILED] = in_torch_compile(lambda: REFERENCES.entropy(logits))
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
        providers[COMPILED] = in_torch_compile(lambda: REFERENCES.verify(logits, drafted, turn, rule, q_draft))
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


def make_cases(
    kernels: Operations, device: torch.device, many: int, few: int, vocab: int, compiled: bool, lengths: Sequence[int] = LENGTHS
) -> list[Case]:
    """Return all cases on normal logits of standard deviation 3 in bfloat16, and of what layers do, over contexts of these ``lengths``."""
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
        *layer_cases(kernels, device, (1, few), lengths, compiled),
    ]
