"""Prompts: what is decoded."""

import glob
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count, cycle
from pathlib import Path
from random import Random
from typing import Literal
from zlib import crc32

from dispatch_rl.config import PromptConfig
from dispatch_rl.decoding.families import Family, first_line
from dispatch_rl.decoding.sampling import Sampling
from dispatch_rl.errors import UserError
from dispatch_rl.pocket import stdlib
from dispatch_rl.pocket.reasoning import problems

Split = Literal["train", "validation", "test"]

_CODE_PROMPT_LINES = (6, 16)
_FORMATS = {".txt": "from_text", ".jsonl": "from_json", ".json": "from_json", ".parquet": "from_parquet"}
_SPLIT_SEEDS: dict[Split, int] = {"train": 0, "validation": 1, "test": 2}


@dataclass(frozen=True)
class Prompt:
    """One text to continue."""

    kind: str
    """reasoning, code, or the name of the file it comes from."""
    tokens: tuple[int, ...]
    """Token ids."""
    seed: int
    """Seed of the noise with which it is decoded."""

    def sampling(self, base: Sampling) -> Sampling:
        """Return ``base`` with this prompt's own seed."""
        return replace(base, seed=(base.seed + self.seed) % 2**64)


def prompts(config: PromptConfig, family: Family, split: Split, seed: int) -> Iterator[Prompt]:
    """Yield prompts of one split without end, in an order that depends on ``seed`` alone.

    Training prompts never appear in the other splits. Reasoning prompts for validation and test come from the side that the pocket
    models never saw, code prompts from modules they never saw.

    Raises:
        UserError: A file is missing, of an unknown kind, empty or without the column, or a prompt is empty or too long.
    """
    rng = Random(f"{_SPLIT_SEEDS[split]}/{config.seed}/{seed}")
    if config.source == "pocket":
        makers = {"reasoning": _reasoning, "code": _code}
        texts: Iterator[tuple[str, str]] = _taking_turns([makers[kind](rng, split) for kind in config.kinds])
    else:
        texts = _file_prompts(config, rng, split)
    for number, (kind, text) in enumerate(texts):
        tokens = tuple(family.encode(text))
        if not tokens:
            raise UserError(f"prompts.source: an empty prompt in {config.source}")
        if len(tokens) >= family.context_limit:
            raise UserError(f"prompts.source: a prompt of {len(tokens)} tokens leaves no room in a context of {family.context_limit}")
        yield Prompt(kind, tokens, number)


def _taking_turns(streams: list[Iterator[tuple[str, str]]]) -> Iterator[tuple[str, str]]:
    for stream in cycle(streams):
        yield next(stream)


def _reasoning(rng: Random, split: Split) -> Iterator[tuple[str, str]]:
    for problem in problems(rng.randrange(2**62), held_out=split != "train"):
        # Easy problems recur, so validation and test part the held-out prompts by a further bit of their checksum.
        if split == "train" or (crc32(problem.prompt.encode()) // 16 % 2 == 0) == (split == "test"):
            yield "reasoning", problem.prompt


def _code(rng: Random, split: Split) -> Iterator[tuple[str, str]]:
    """Yield a few lines from somewhere in a module."""
    files = list(stdlib.training_files() if split == "train" else stdlib.held_out_files())
    if split != "train":
        files = files[0::2] if split == "validation" else files[1::2]
    while True:
        lines = stdlib.read_text(rng.choice(files)).splitlines(keepends=True)
        height = rng.randint(*_CODE_PROMPT_LINES)
        start = rng.randrange(max(1, len(lines) - height))
        text = "".join(lines[start : start + height])[:1_000]
        if text.strip():
            yield "code", text


def _file_prompts(config: PromptConfig, rng: Random, split: Split) -> Iterator[tuple[str, str]]:
    """Yield the rows of a file over and over: eight tenths for training, a tenth each for validation and test."""
    rows = _read_column(Path(config.source), config.column)
    order = list(range(len(rows)))
    Random(config.seed).shuffle(order)
    tenth = max(1, len(rows) // 10)
    parts = {"test": order[:tenth], "validation": order[tenth : 2 * tenth], "train": order[2 * tenth :]}
    if not parts[split]:
        raise UserError(f"prompts.source: {config.source} has {len(rows)} prompts; at least 3 are needed for three splits")
    for _ in count():
        for row in rng.sample(parts[split], len(parts[split])):
            yield Path(config.source).stem, rows[row]


def _read_column(path: Path, column: str) -> list[str]:
    import datasets  # takes most of a second

    if path.suffix not in _FORMATS:
        raise UserError(f"prompts.source: {path} is neither 'pocket' nor a {', '.join(_FORMATS)} file")
    if not path.is_file():
        raise UserError(f"prompts.source: there is no file {path}")
    if path.stat().st_size == 0:
        raise UserError(f"prompts.source: {path} is empty")
    column = "text" if path.suffix == ".txt" else column
    try:
        # Its file names are patterns, and `load_dataset` would ask the hub even for a local file.
        dataset = getattr(datasets.Dataset, _FORMATS[path.suffix])(glob.escape(str(path)))
    except (ValueError, OSError, datasets.exceptions.DatasetGenerationError) as error:
        raise UserError(f"prompts.source: {path} cannot be read: {first_line(error)}") from error
    if column not in dataset.column_names:
        raise UserError(f"prompts.column: {path} has no column '{column}'; it has {', '.join(dataset.column_names)}")
    rows = list(dict.fromkeys(row for row in dataset[column] if isinstance(row, str) and row.strip()))
    if not rows:
        raise UserError(f"prompts.source: {path} holds no prompt")
    return rows
