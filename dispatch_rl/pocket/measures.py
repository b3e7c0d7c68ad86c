"""What a pocket family can do, measured on text that no model of it has seen."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from random import Random
from statistics import median
from time import perf_counter

import torch
import torch.nn.functional as F
from torch import Tensor

from dispatch_rl.decoding.arms import NONE, Arm
from dispatch_rl.decoding.families import Family
from dispatch_rl.decoding.models import CachedModel
from dispatch_rl.decoding.sampling import Sampling
from dispatch_rl.decoding.session import DecodingSession
from dispatch_rl.kernels.noise import gumbel
from dispatch_rl.kernels.verify import shape
from dispatch_rl.pocket import stdlib
from dispatch_rl.pocket.reasoning import KINDS, LEVELS, Problem, is_held_out, make_problem, problems, stated_answer

_WINDOW = 512
_BATCH = 64
_NEW_TOKENS = 480
_CODE_PROMPT = 96
"""Tokens of a window of code that the target goes on from."""
_PATH_TOKENS = {"reasoning": _NEW_TOKENS, "code": 128}
"""Tokens of a text of the target's own at most, by kind of text."""
TEMPERATURE = 0.6


@dataclass(frozen=True)
class ModelFigures:
    """One model of a family."""

    parameters: int
    reasoning_loss: float
    """Cross-entropy of held-out solutions (nats per token)."""
    code_loss: float
    """Cross-entropy of held-out modules (nats per token)."""
    solved: dict[str, float]
    """Share of held-out problems with the exact answer, greedy, by kind."""
    relative_cost: float
    """One-token forward pass, as a share of the target's."""
    missed: dict[str, float]
    """Share of the tokens of the target's own text that the student fails to match, by kind of text; empty for the target."""

    @property
    def solved_share(self) -> float:
        """Share of all held-out problems solved; kinds count alike."""
        return sum(self.solved.values()) / len(self.solved)


@dataclass(frozen=True)
class FamilyFigures:
    """A family: its models and the target's entropy."""

    models: dict[str, ModelFigures]
    median_entropies_nats: dict[str, float]
    """Median of the target's entropy along its own text at temperature 0.6, by kind of text."""
    problems: int
    """Problems that were solved or not."""
    path_tokens: dict[str, int]
    """Tokens over which entropies and matches were counted, by kind of text."""


def measure(family: Family, problems_per_kind: int = 20, paths: int = 60) -> FamilyFigures:
    """Measure every model of ``family``."""
    exam = held_out_exam(problems_per_kind)
    texts = {kind: target_paths(family, kind, paths) for kind in _PATH_TOKENS}
    models = {"target": family.target, **family.students}
    costs = relative_costs(models)
    figures = {
        name: ModelFigures(
            parameters=sum(p.numel() for p in model.model.parameters()),
            reasoning_loss=reasoning_loss(model, family, exam),
            code_loss=code_loss(model, family),
            solved=solved_shares(model, family, exam),
            relative_cost=costs[name],
            missed={} if name == "target" else {kind: missed_share(model, own) for kind, (own, _) in texts.items()},
        )
        for name, model in models.items()
    }
    medians = {kind: median(entropies) for kind, (_, entropies) in texts.items()}
    return FamilyFigures(figures, medians, len(exam), {kind: sum(len(path) for _, path in own) for kind, (own, _) in texts.items()})


def held_out_exam(per_kind: int) -> list[Problem]:
    """Return ``per_kind`` held-out problems of every kind, levels uniform."""
    rng = Random(20_260)
    exam: list[Problem] = []
    for kind in KINDS:
        while sum(problem.kind == kind for problem in exam) < per_kind:
            problem = make_problem(rng, kind, rng.choice(LEVELS))
            if is_held_out(problem):
                exam.append(problem)
    return exam


@torch.inference_mode()
def _teacher_forced(model: CachedModel, tokens: Sequence[int]) -> Tensor:
    """Return the logits ``[tokens, vocab]`` of one pass over ``tokens``."""
    model.start(len(tokens))
    return model.forward(torch.tensor(tokens, device=model.device))


def reasoning_loss(model: CachedModel, family: Family, exam: Sequence[Problem]) -> float:
    """Return the mean cross-entropy of the solutions (nats per token)."""
    total, count = 0.0, 0
    for problem in exam:
        prompt = family.encode(problem.prompt)
        tokens = prompt + family.encode(problem.solution)
        logits = _teacher_forced(model, tokens)[len(prompt) - 1 : -1]
        total += float(F.cross_entropy(logits, torch.tensor(tokens[len(prompt) :], device=model.device), reduction="sum"))
        count += len(logits)
    return total / count


def code_loss(model: CachedModel, family: Family) -> float:
    """Return the mean cross-entropy of windows of held-out modules (nats per token)."""
    losses: list[float] = []
    for window in _code_windows(family):
        logits = _teacher_forced(model, window)[:-1]
        losses.append(float(F.cross_entropy(logits, torch.tensor(window[1:], device=model.device))))
    return sum(losses) / len(losses)


def _code_windows(family: Family) -> Iterator[list[int]]:
    for path in stdlib.held_out_files():
        tokens = family.encode(stdlib.read_text(path))
        for start in range(0, len(tokens) - _WINDOW, _WINDOW)[:4] if len(tokens) > _WINDOW else ():
            yield tokens[start : start + _WINDOW]


def solved_shares(model: CachedModel, family: Family, exam: Sequence[Problem]) -> dict[str, float]:
    """Return the share of problems of each kind whose greedy answer is exactly right."""
    right: dict[str, list[bool]] = {}
    for start in range(0, len(exam), _BATCH):
        batch = exam[start : start + _BATCH]
        for problem, text in zip(batch, _greedy_texts(model, family, batch), strict=True):
            right.setdefault(problem.kind, []).append(stated_answer(text) == problem.answer)
    return {kind: sum(results) / len(results) for kind, results in right.items()}


@torch.inference_mode()
def _greedy_texts(model: CachedModel, family: Family, batch: Sequence[Problem]) -> list[str]:
    family.tokenizer.padding_side = "left"
    inputs = family.tokenizer([problem.prompt for problem in batch], return_tensors="pt", padding=True).to(model.device)
    generate: Callable[..., Tensor] = model.model.generate  # type: ignore[assignment]
    output = generate(**inputs, max_new_tokens=_NEW_TOKENS, do_sample=False)
    return family.tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def target_paths(family: Family, kind: str, count: int) -> tuple[list[tuple[list[int], list[int]]], list[float]]:
    """Return held-out prompts with the target's own texts at temperature 0.6 (seed = number of the text), and its entropies along them."""
    paths, entropies = [], []
    for seed, prompt in enumerate(islice(_held_out_prompts(family, kind), count)):
        session = DecodingSession(family, prompt, Sampling(TEMPERATURE, seed=seed), _PATH_TOKENS[kind])
        while not session.finished:
            session.step(Arm(NONE))
        paths.append((prompt, session.text_tokens))
        entropies += [entropy for record in session.rounds for entropy in record.entropies_nats]
    return paths, entropies


def _held_out_prompts(family: Family, kind: str) -> Iterator[list[int]]:
    if kind == "reasoning":
        return (family.encode(problem.prompt) for problem in problems(7, held_out=True))
    return (window[:_CODE_PROMPT] for window in _code_windows(family))


def missed_share(student: CachedModel, paths: Sequence[tuple[list[int], list[int]]]) -> float:
    """Return the share of path tokens that ``student`` fails to match: one teacher-forced pass per path."""
    missed, count = 0, 0
    for seed, (prompt, path) in enumerate(paths):
        logits = _teacher_forced(student, prompt + path)[len(prompt) - 1 : -1]
        positions = torch.arange(len(prompt), len(prompt) + len(path), device=student.device)
        chosen = (shape(logits, TEMPERATURE) + gumbel(seed, positions, student.vocab)).argmax(-1)
        missed += int((chosen != torch.tensor(path, device=student.device)).sum())
        count += len(path)
    return missed / count


def relative_costs(models: dict[str, CachedModel], rounds: int = 200, context: int = 200) -> dict[str, float]:
    """Return each model's one-token latency as a share of the target's: medians of interleaved forward passes."""
    token = torch.zeros(1, dtype=torch.long, device=models["target"].device)
    for model in models.values():
        model.start(context + 1)
        model.forward(token.expand(context), rows=1)
    latencies: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(rounds):
        for name, model in models.items():
            model.roll_back(context)
            began = perf_counter()
            model.forward(token, rows=1).argmax().item()
            latencies[name].append(perf_counter() - began)
    target = median(latencies["target"])
    return {name: median(values) / target for name, values in latencies.items()}
