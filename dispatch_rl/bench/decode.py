"""One fixed student against transformers' assisted generation. A wrong token is an error, not a number."""

from collections.abc import Callable, Sequence
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

OURS, THEIRS = "dispatch-rl", "transformers assisted"


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
    json: Path | None = None
    """Also write the rows to this file."""


def our_decoder(family: "Family", student: str, draft_length: int, max_new_tokens: int) -> Callable[[Sequence[int]], list[int]]:
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


def transformers_decoder(family: "Family", student: str, draft_length: int, max_new_tokens: int) -> Callable[[Sequence[int]], list[int]]:
    """Return the same by ``generate(assistant_model=...)`` with a constant draft length.

    The knobs are read from the assistant's own generation configuration; given to ``generate`` they are ignored.
    """
    import torch

    assistant: Any = family.students[student].model
    assistant.generation_config.num_assistant_tokens = draft_length
    assistant.generation_config.num_assistant_tokens_schedule = "constant"
    assistant.generation_config.assistant_confidence_threshold = 0.0
    target: Any = family.target.model

    def decode(prompt: Sequence[int]) -> list[int]:
        ids = torch.tensor([list(prompt)], device=family.device)
        with torch.inference_mode():
            output = target.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                assistant_model=assistant,
                do_sample=False,
                max_new_tokens=max_new_tokens,
                pad_token_id=0,
            )
        tokens: list[int] = output[0, len(prompt) :].tolist()
        return tokens

    return decode


def bench_decode(config: DecodeBenchConfig) -> list[dict[str, Any]]:
    """Run both decoders on the same prompts in random order and return a row for each.

    Raises:
        UserError: The two disagree about a token.
    """
    from dispatch_rl.decoding.families import load_family
    from dispatch_rl.prompts import prompts

    family = load_family(config.family)
    student = config.student or next(iter(family.students), None)
    if student not in family.students:
        raise UserError(f"student: the family has no '{student}'; it has {', '.join(family.students)}")
    arguments = (family, student, config.draft_length, config.prompts.max_new_tokens)
    decoders = {OURS: our_decoder(*arguments), THEIRS: transformers_decoder(*arguments)}
    chosen = list(islice(prompts(config.prompts, family, "test", config.seed), config.num_prompts))
    for decode in decoders.values():
        decode(chosen[0].tokens)
    rng = np.random.default_rng(config.seed)
    times: dict[str, list[float]] = {name: [] for name in decoders}
    counts: list[int] = []
    for prompt in chosen:
        texts = {}
        for name in rng.permutation(list(decoders)):
            began = perf_counter()
            texts[name] = decoders[name](prompt.tokens)
            times[name].append(1000 * (perf_counter() - began))
        if texts[OURS] != texts[THEIRS]:
            raise UserError(f"the two decoders disagree on a {prompt.kind} prompt (number {prompt.seed}); no speed is reported")
        counts.append(len(texts[OURS]))
    return _rows(config, f"{student}-{config.draft_length}", times, np.array(counts, dtype=float), family.device_name())


def _rows(
    config: DecodeBenchConfig, arm: str, times: dict[str, list[float]], tokens: "np.ndarray[Any, Any]", device: str
) -> list[dict[str, Any]]:
    from dispatch_rl.statistics import ratio_of_sums

    theirs = np.array(times[THEIRS])
    rows = []
    for name, values in times.items():
        latency = ratio_of_sums(np.array(values), tokens, config.seed)
        gain = ratio_of_sums(theirs, np.array(values), config.seed)
        rows.append(
            {
                "policy": f"{name} {arm}",
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
    print(f"{'decoder':<34} {'ms/token':>9} {'95 % interval':>17} {'tokens/s':>9}")
    for row in rows:
        interval = f"{row['ci_low']:.3f} - {row['ci_high']:.3f}"
        latency = row["latency_ms_per_token"]
        print(f"{row['policy']:<34} {latency:>9.3f} {interval:>17} {1000 / latency:>9.1f}")
    gain = f"{ours['speedup']:.2f} (95 % interval {ours['speedup_ci_low']:.2f} to {ours['speedup_ci_high']:.2f}, paired by prompt)"
    print(f"\ntokens per second, {OURS} over {THEIRS}: {gain}")
    if config.json is not None:
        from dispatch_rl.runs import write_json

        write_json(config.json, rows)
