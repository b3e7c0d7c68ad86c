"""One fixed student against transformers' assisted generation. A wrong token is an error, not a number, but at a near tie.

With ``random_weights`` there is no text to compare: :mod:`dispatch_rl.bench.random_weights` measures what needs no trained weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dispatch_rl import cli
from dispatch_rl.bench.measuring import Decoder, measure, rows_of, transformers_decoder
from dispatch_rl.config import FamilyConfig, ProfilingConfig, PromptConfig
from dispatch_rl.errors import UserError, check_seed
from dispatch_rl.utilisation import describe, watch_gpu

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
    bundle: Path | None = None
    """Compare this exported policy, instead of one fixed student, with the best of transformers' own options, chosen on validation
    prompts: each student, and prompt lookup, as they come and with the draft lengths of the policy's arms."""
    num_tuning_prompts: int = 12
    """Validation prompts that the best option is chosen on."""
    random_weights: bool = False
    """Build the models from their configurations alone, with random weights that are made on the device, and measure what needs no trained
    ones: every draft step, verification by draft length, and what a round costs besides, each beside the time that reading the weights
    takes. Quantisation, device_map and the numbers of prompts are left out; student, bundle and prompts are refused."""
    students: list[str] | None = None
    """With random_weights, who is built beside the target; null means all of the family's students."""
    profiling: ProfilingConfig = ProfilingConfig(rounds=6_000, contexts=[256, 1024, 4096])
    """With random_weights, how much is measured."""
    json: Path | None = None
    """Also write the rows to this file."""

    def __post_init__(self) -> None:
        if self.draft_length < 1:
            raise UserError(f"draft_length: {self.draft_length} is not at least 1")
        check_seed("seed", self.seed)
        if self.num_prompts < 2:
            raise UserError(f"num_prompts: {self.num_prompts} is not at least 2, so there would be no interval")
        if self.num_tuning_prompts < 1:
            raise UserError(f"num_tuning_prompts: {self.num_tuning_prompts} is not at least 1")
        if not self.random_weights and self.students is not None:
            raise UserError("students: it says what random_weights builds; without it, --student says who drafts")
        if self.bundle is not None and self.student is not None:
            raise UserError("student: it has no meaning with bundle, whose policy says who drafts")
        for key, usual in (("student", None), ("bundle", None), ("prompts", PromptConfig(max_new_tokens=128))):
            if self.random_weights and getattr(self, key) != usual:
                raise UserError(f"{key}: it has no meaning with random_weights, which measures all students on random tokens")


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


def bench_decode(config: DecodeBenchConfig) -> list[dict[str, Any]]:
    """Run both decoders on the same prompts in random order and return a row for each.

    Raises:
        UserError: The two disagree about a token in float32.
    """
    from dispatch_rl.decoding.arms import Arm
    from dispatch_rl.decoding.families import load_family
    from dispatch_rl.decoding.graphs import capture_graphs
    from dispatch_rl.prompts import prompts

    family = load_family(config.family)
    if config.bundle is not None:
        from dispatch_rl.bench.options import bench_bundle

        sizes = (config.num_tuning_prompts, config.num_prompts, config.seed)
        return bench_bundle(config.bundle, family, config.prompts, *sizes)
    student = config.student or next(iter(family.students), None)
    if student not in family.students:
        raise UserError(f"student: the family has no '{student}'; it has {', '.join(family.students)}")
    capture_graphs(family, [Arm(student, config.draft_length)])
    arguments = (family, student, config.draft_length, config.prompts.max_new_tokens)
    ours, theirs = (f"{name} {student}-{config.draft_length}" for name in (OURS, THEIRS))
    decoders = {ours: our_decoder(*arguments), theirs: transformers_decoder(*arguments)}
    chosen = list(islice(prompts(config.prompts, family, "test", config.seed), config.num_prompts))
    with watch_gpu(family.device) as watch:
        measured = measure(decoders, chosen, config.seed, family, watch)
    return rows_of(measured, config.seed, family.device_name(), watch)


def main(argv: Sequence[str]) -> None:
    """Run the benchmark and print its table."""
    parser = cli.make_parser(DecodeBenchConfig, "bench decode", DecodeBenchConfig.__doc__ or "")
    config = cli.build(DecodeBenchConfig, parser, cli.parse(parser, argv))
    cli.check_file("json", config.json)
    if config.random_weights:
        from dispatch_rl.bench.random_weights import bench_random_weights, table

        rows = bench_random_weights(config.family, config.students, config.draft_length, config.profiling, config.seed)
        print(f"\n{table(rows)}")
    else:
        rows = bench_decode(config)
        print_comparison(rows)
    if config.json is not None:
        from dispatch_rl.runs import write_json

        write_json(config.json, rows)


def print_comparison(rows: Sequence[dict[str, Any]]) -> None:
    """Print the rows of two decoders as a table."""
    ours = rows[0]
    print(f"{ours['num_prompts']} held-out prompts, {ours['num_emitted_tokens']} tokens, greedy, {ours['device']}; prefill included")
    if ours["num_parted"]:
        print(f"{ours['num_parted']} texts parted at near ties, as they may by rounding; times are per token of each decoder's own text\n")
    else:
        print("the two emit the same tokens\n")
    print(f"{'decoder':<44} {'ms/token':>9} {'95 % interval':>17} {'tokens/s':>9}")
    for row in rows:
        interval = f"{row['ci_low']:.3f} - {row['ci_high']:.3f}"
        latency = row["latency_ms_per_token"]
        print(f"{row['policy']:<44} {latency:>9.3f} {interval:>17} {1000 / latency:>9.1f}")
    for row in rows:
        if told := describe(row):
            print(f"{row['policy']:<44} {told}")
    gain = f"{ours['speedup']:.2f} (95 % interval {ours['speedup_ci_low']:.2f} to {ours['speedup_ci_high']:.2f}, paired by prompt)"
    print(f"\ntokens per second, {OURS} over transformers: {gain}")
