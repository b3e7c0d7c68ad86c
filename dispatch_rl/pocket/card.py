"""The model card of a family: measures everything it claims.

Run ``python -m dispatch_rl.pocket.card`` for the family that ships with the package, ``--folder DIR`` for another.
"""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dispatch_rl import cli
from dispatch_rl.config import FamilyConfig, ModelSource
from dispatch_rl.errors import UserError

if TYPE_CHECKING:
    from dispatch_rl.pocket.measures import FamilyFigures

_INTRODUCTION = """\
Small Qwen2 models for trying out speculative decoding without a GPU: a target, and students that share its tokenizer.

**Data.** *Reasoning*: problems with worked solutions from the seeded generator in `dispatch_rl/pocket/reasoning` ({kinds} kinds,
five levels); a sixteenth of all prompts is held out by checksum. *Code*: the standard library of the Python that trained it, tests
included, read from its own folder; the modules named in `dispatch_rl/pocket/stdlib.py` are held out. Nothing else. The models know
nothing about the world and are of no use beyond this.

**Training.** {training}

**Made by** `python -m dispatch_rl.pocket --config configs/pocket-recipe.yaml`; **measured by** `python -m dispatch_rl.pocket.card`.
"""


@dataclass(frozen=True)
class CardConfig:
    """A family to be measured."""

    folder: Path | None = None
    """Folder with a sub-folder per model; null means the family that ships with the package."""
    students: list[str] | None = None
    """Sub-folders of the students, from small to large; null means small, medium, large."""
    problems_per_kind: int = 20
    """Held-out problems of every kind to solve."""
    threads: int = 2
    """CPU threads."""


def family_config(config: CardConfig) -> FamilyConfig:
    """Return where the models of the card are."""
    base = "pocket:" if config.folder is None else f"{config.folder}/"
    names = ["small", "medium", "large"] if config.students is None else config.students
    students = {name: ModelSource(f"{base}{name}") for name in names}
    return FamilyConfig(ModelSource(f"{base}target"), students, threads=config.threads)


def card_text(figures: "FamilyFigures", training: str) -> str:
    """Return the model card in Markdown."""
    from dispatch_rl.pocket.reasoning import KINDS

    lines = ["# Pocket family", "", _INTRODUCTION.format(kinds=len(KINDS), training=training)]
    lines += [
        f"Held out: {figures.problems} problems; the target's own text at temperature 0.6, {_by_kind(figures.path_tokens, 'd')} tokens. "
        f"Median entropy along it: {_by_kind(figures.median_entropies_nats, '.4f')} nats.",
        "",
        "| model | parameters | reasoning loss | code loss | problems solved | one-token cost | missed, reasoning | missed, code |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, model in sorted(figures.models.items(), key=lambda item: item[1].parameters):
        missed = [f"{model.missed[kind]:.3f}" if model.missed else "" for kind in ("reasoning", "code")]
        lines.append(
            f"| {name} | {model.parameters / 1e6:.2f} M | {model.reasoning_loss:.3f} | {model.code_loss:.3f} "
            f"| {model.solved_share:.1%} | {model.relative_cost:.2f} | {' | '.join(missed)} |"
        )
    lines += [
        "",
        "Losses in nats per token. Cost: median of one-token forward passes on "
        f"{platform.machine()} CPU, context of 200 tokens, target = 1. Missed: share of the target's tokens that the student, with the "
        "same Gumbel noise, would not have chosen.",
        "",
        "Problems solved by kind (greedy, exact answer):",
        "",
    ]
    names = list(figures.models)
    lines += [f"| kind | {' | '.join(names)} |", f"|---|{'--:|' * len(names)}"]
    for kind in figures.models["target"].solved:
        lines.append(f"| {kind} | " + " | ".join(f"{figures.models[name].solved[kind]:.0%}" for name in names) + " |")
    return "\n".join(lines) + "\n"


def _by_kind(values: Mapping[str, float], form: str) -> str:
    return ", ".join(f"{kind} {value:{form}}" for kind, value in values.items())


def training_text(folder: Path) -> str:
    """Return the paragraph on training that the recipe left in ``folder``."""
    path = folder / "TRAINING.md"
    if not path.is_file():
        raise UserError(f"folder: {folder} has no TRAINING.md, which the recipe writes")
    return path.read_text().strip()


def main(argv: Sequence[str]) -> None:
    """Measure a family, print its card and write it to the family's folder."""
    parser = cli.make_parser(CardConfig, "pocket.card", "Measure a family and write its model card.")
    config = cli.build(CardConfig, parser, cli.parse(parser, argv))

    from dispatch_rl.decoding.families import load_family
    from dispatch_rl.decoding.loading import resolve
    from dispatch_rl.pocket.measures import measure

    sources = family_config(config)
    folder = Path(resolve(sources.target)).parent
    text = card_text(measure(load_family(sources), config.problems_per_kind), training_text(folder))
    (folder / "README.md").write_text(text)
    print(text)


if __name__ == "__main__":
    cli.run(main)
