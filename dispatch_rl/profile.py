"""Measure the latency profile of a family: ``python -m dispatch_rl.profile --config configs/pocket.yaml --output profile.json``."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dispatch_rl import cli
from dispatch_rl.config import TrainConfig

if TYPE_CHECKING:
    from dispatch_rl.replay.profile import ForwardLatency, Profile

_SHOWN_QUERIES = (1, 2, 4, 6, 9, 17, 64, 256)


@dataclass(frozen=True)
class ProfileConfig(TrainConfig):
    """A measurement; every key of a training run is understood, so that one file serves both."""

    output: Path = Path("profile.json")
    """File to write."""


def main(argv: Sequence[str]) -> None:
    """Measure, print a table, write the file."""
    parser = cli.make_parser(
        ProfileConfig, "profile", "Measure the forward latencies of a family on this device, in whole rounds of decoding."
    )
    config = cli.build(ProfileConfig, parser, cli.parse(parser, argv))
    cli.check_file("output", config.output)

    from dispatch_rl.decoding.families import load_family
    from dispatch_rl.progress import progress_bar
    from dispatch_rl.replay.measuring import measure

    family = load_family(config.family)
    print(family.describe())
    with progress_bar("measuring latencies", config.profiling.rounds) as update:
        profile = measure(family, config, config.profiling, update)
    profile.write(config.output)
    print(f"\n{table(profile)}\n\nwritten: {config.output}")


def table(profile: "Profile") -> str:
    """Return median (and quartiles) of the latencies by query length, at the shortest and the longest context."""
    queries = [query for query in _SHOWN_QUERIES if any(query in model.queries for model in profile.models.values())]
    lines = [f"{'ms, median (quartiles)':<24}" + "".join(f"{f'{query} tokens':>22}" for query in queries)]
    for name, model in profile.models.items():
        for column in sorted({0, len(model.contexts) - 1}):
            cells = "".join(f"{_cell(model, query, column):>22}" for query in queries)
            lines.append(f"{f'{name}, text of {model.contexts[column]}':<24}{cells}")
    extra = f"a round besides: {profile.overhead_ms:.3f} ms; noise: {profile.token_ms:.3f} ms per token"
    if profile.watch_ms:
        extra += f"; a look at how clear a choice is: {profile.watch_ms:.3f} ms"
    return "\n".join([*lines, extra, f"{profile.device}, {profile.dtype}"])


def _cell(model: "ForwardLatency", query: int, column: int) -> str:
    if query not in model.queries:
        return ""
    row = model.queries.index(query)
    text = f"{model.median_ms[row][column]:.2f}"
    if model.quartile_low_ms and model.quartile_high_ms:
        text += f" ({model.quartile_low_ms[row][column]:.2f}-{model.quartile_high_ms[row][column]:.2f})"
    return text


if __name__ == "__main__":
    cli.run(main)
