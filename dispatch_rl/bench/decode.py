"""One fixed student against transformers' assisted generation. A wrong token is an error, not a number."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from dispatch_rl import cli
from dispatch_rl.config import FamilyConfig, PromptConfig
from dispatch_rl.errors import UserError

if TYPE_CHECKING:
    from dispatch_rl.decoding.families import Family
    from dispatch_rl.prompts import Prompt

OURS, THEIRS = "dispatch-rl", "transformers assisted"
DEFAULT_LENGTH, DEFAULT_CONFIDENCE = 20, 0.4
"""What transformers drafts unless told otherwise: up to so many tokens, while the student is so sure of the last."""

Decoder = Callable[[Sequence[int]], list[int]]
"""From a prompt to its continuation."""


@dataclass(frozen=True)
class DecodeBenchConfig:
    """Greedy decoding with one fixed student, against transformers' assisted generation with the same student."""

    family: FamilyConfig = FamilyConfig()
    """The models."""
    student: str | None = None
    """Who drafts; null means the family's first student."""
    draft_length: int = 5
    """Tokens per draft."""
    prompts: PromptConfig = PromptConfig(max_new_tokens=128)
    """What is decoded."""
    num_prompts: int = 24
    """Held-out prompts."""
    seed: int = 0
    """Seed of the prompts, of the order and of the bootstrap."""
    bundle: Path | None = None
    """Compare this exported policy, instead of one fixed student, with the best of transformers' own options, chosen on validation
    prompts: each student, and prompt lookup, as they come and with the draft lengths of the policy's arms."""
    num_tuning_prompts: int = 12
    """Validation prompts that the best option is chosen on."""
    json: Path | None = None
    """Also write the rows to this file."""


def our_decoder(family: "Family", student: str, draft_length: int, max_new_tokens: int) -> Decoder:
    """Return a function from a prompt to its greedy continuation by a fixed arm."""
    from dispatch_rl.decoding.arms import Arm
    from dispatch_rl.decoding.sampling import Sampling
    from dispatch_rl.decoding.session import DecodingSession

    arm = Arm(student, draft_length)

    def decode(prompt: Sequence[int]) -> list[int]:
        session = DecodingSession(family, prompt, Sampling(), max_new_tokens)
        while not session.finished:
            session.step(arm)
        return session.text_tokens

    return decode


def transformers_decoder(family: "Family", student: str, draft_length: int, max_new_tokens: int, confidence: float = 0.0) -> Decoder:
    """Return the same by ``generate(assistant_model=...)``; above a ``confidence`` of 0 a draft ends where the student is less sure.

    The knobs are read from the assistant's own generation configuration; given to ``generate`` they are ignored.
    """
    assistant: Any = family.students[student].model

    def decode(prompt: Sequence[int]) -> list[int]:
        assistant.generation_config.num_assistant_tokens = draft_length
        assistant.generation_config.num_assistant_tokens_schedule = "constant"
        assistant.generation_config.assistant_confidence_threshold = confidence
        return greedy(family, prompt, max_new_tokens, assistant_model=assistant)

    return decode


def greedy(family: "Family", prompt: Sequence[int], max_new_tokens: int, **options: Any) -> list[int]:
    """Return what ``generate`` writes greedily."""
    import torch

    ids, target = torch.tensor([list(prompt)], device=family.device), family.target.model
    with torch.inference_mode():
        output = target.generate(  # type: ignore[operator]
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=max_new_tokens, pad_token_id=0, **options
        )
    tokens: list[int] = output[0, len(prompt) :].tolist()
    return tokens


def bench_decode(config: DecodeBenchConfig) -> list[dict[str, Any]]:
    """Run both decoders on the same prompts in random order and return a row for each.

    Raises:
        UserError: The two disagree about a token.
    """
    from dispatch_rl.decoding.families import load_family
    from dispatch_rl.prompts import prompts

    family = load_family(config.family)
    if config.bundle is not None:
        from dispatch_rl.bench.options import bench_bundle

        return bench_bundle(config, config.bundle, family)
    student = config.student or next(iter(family.students), None)
    if student not in family.students:
        raise UserError(f"student: the family has no '{student}'; it has {', '.join(family.students)}")
    arguments = (family, student, config.draft_length, config.prompts.max_new_tokens)
    decoders = {OURS: our_decoder(*arguments), THEIRS: transformers_decoder(*arguments)}
    chosen = list(islice(prompts(config.prompts, family, "test", config.seed), config.num_prompts))
    times, counts = measure(decoders, chosen, config.seed)
    named = {f"{name} {student}-{config.draft_length}": values for name, values in times.items()}
    return rows_of(config, named, counts, family.device_name())


def measure(decoders: Mapping[str, Decoder], chosen: "Sequence[Prompt]", seed: int) -> tuple[dict[str, list[float]], list[int]]:
    """Let every decoder continue every prompt, in random order.

    Returns:
        The times (ms) of each decoder, and the number of tokens of each text.

    Raises:
        UserError: Two of them disagree about a token.
    """
    for decode in decoders.values():
        decode(chosen[0].tokens)
    rng = np.random.default_rng(seed)
    times: dict[str, list[float]] = {name: [] for name in decoders}
    counts: list[int] = []
    for prompt in chosen:
        texts = {}
        for name in rng.permutation(list(decoders)):
            began = perf_counter()
            texts[name] = decoders[name](prompt.tokens)
            times[name].append(1000 * (perf_counter() - began))
        first, *others = texts.values()
        if any(text != first for text in others):
            raise UserError(f"the decoders disagree on a {prompt.kind} prompt (number {prompt.seed}); no speed is reported")
        counts.append(len(first))
    return times, counts


def rows_of(config: DecodeBenchConfig, times: Mapping[str, Sequence[float]], counts: Sequence[int], device: str) -> list[dict[str, Any]]:
    """Return a row for each decoder; the speed-up is over the last of them."""
    from dispatch_rl.statistics import ratio_of_sums

    tokens = np.array(counts, dtype=float)
    theirs = np.array(list(times.values())[-1])
    rows = []
    for name, values in times.items():
        latency = ratio_of_sums(np.array(values), tokens, config.seed)
        gain = ratio_of_sums(theirs, np.array(values), config.seed)
        rows.append(
            {
                "policy": name,
                "mode": "live",
                "latency_ms_per_token": latency.value,
                "ci_low": latency.low,
                "ci_high": latency.high,
                "speedup": gain.value,
                "speedup_ci_low": gain.low,
                "speedup_ci_high": gain.high,
                "num_prompts": len(tokens),
                "num_emitted_tokens": int(tokens.sum()),
                "device": device,
                "seed": config.seed,
            }
        )
    return rows


def main(argv: Sequence[str]) -> None:
    """Run the benchmark and print its table."""
    parser = cli.make_parser(DecodeBenchConfig, "bench decode", DecodeBenchConfig.__doc__ or "")
    config = cli.build(DecodeBenchConfig, parser, cli.parse(parser, argv))
    cli.check_file("json", config.json)
    rows = bench_decode(config)
    ours = rows[0]
    print(f"{ours['num_prompts']} held-out prompts, {ours['num_emitted_tokens']} tokens, greedy, {ours['device']}; prefill included")
    print("the two emit the same tokens\n")
    print(f"{'decoder':<44} {'ms/token':>9} {'95 % interval':>17} {'tokens/s':>9}")
    for row in rows:
        interval = f"{row['ci_low']:.3f} - {row['ci_high']:.3f}"
        latency = row["latency_ms_per_token"]
        print(f"{row['policy']:<44} {latency:>9.3f} {interval:>17} {1000 / latency:>9.1f}")
    gain = f"{ours['speedup']:.2f} (95 % interval {ours['speedup_ci_low']:.2f} to {ours['speedup_ci_high']:.2f}, paired by prompt)"
    print(f"\ntokens per second, {OURS} over transformers: {gain}")
    if config.json is not None:
        from dispatch_rl.runs import write_json

        write_json(config.json, rows)
