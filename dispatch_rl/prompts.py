"""Prompts: what is decoded."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import cycle
from random import Random
from typing import Any, Literal
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from dispatch_rl.config import PromptConfig
from dispatch_rl.decoding.families import Family
from dispatch_rl.decoding.sampling import Sampling
from dispatch_rl.errors import UserError
from dispatch_rl.pocket import stdlib
from dispatch_rl.pocket.reasoning import problems
from dispatch_rl.prompt_files import TextColumn, read_column

Split = Literal["train", "validation", "test"]

_CODE_PROMPT_LINES = (6, 16)
_SPLIT_SEEDS: dict[Split, int] = {"train": 0, "validation": 1, "test": 2}
_TOLD: set[tuple[str, int]] = set()
"""Datasets and contexts for which it has been told how many prompts are too long."""


@dataclass(frozen=True)
class Prompt:
    """One text to continue."""

    kind: str
    """reasoning, code, or the name of the set, file, folder or hub dataset it comes from."""
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
    models never saw, code prompts from modules they never saw. Prompts of a file, folder or hub dataset that leave no room for a new token
    in the context are left out, which is told once, on standard error; which part the others are in does not depend on it.

    Raises:
        UserError: The source is missing, of an unknown kind, broken, too small, without the column, a prompt is empty, or all are too long.
    """
    rng = Random(f"{_SPLIT_SEEDS[split]}/{config.seed}/{seed}")
    make = _pocket_prompts if config.source == "pocket" else _file_prompts
    for number, (kind, tokens) in enumerate(make(config, family, rng, split)):
        yield Prompt(kind, tokens, number)


def _encoded(config: PromptConfig, family: Family, text: str) -> tuple[int, ...]:
    tokens = tuple(family.encode_message(text, config.system) if config.chat else family.encode(text))
    if not tokens:
        raise UserError(f"prompts.source: an empty prompt in {config.source}")
    return tokens


def _pocket_prompts(config: PromptConfig, family: Family, rng: Random, split: Split) -> Iterator[tuple[str, tuple[int, ...]]]:
    makers = {"reasoning": _reasoning, "code": _code}
    for kind, text in _taking_turns([makers[kind](rng, split) for kind in config.kinds]):
        tokens = _encoded(config, family, text)
        if len(tokens) >= family.context_limit:
            raise UserError(f"prompts.source: a prompt of {len(tokens)} tokens leaves no room in a context of {family.context_limit}")
        yield kind, tokens


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


def _file_prompts(config: PromptConfig, family: Family, rng: Random, split: Split) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the prompts of a file, folder or hub dataset over and over: eight tenths for training, a tenth each for validation and test."""
    column = read_column(config)
    rows = _parts(column, config.seed)[split]
    dice = np.random.default_rng(rng.getrandbits(64))
    while True:
        dice.shuffle(rows)
        fitting, shortest = 0, sys.maxsize
        for row in rows:
            tokens = _encoded(config, family, column[int(row)])
            if len(tokens) >= family.context_limit:
                shortest = min(shortest, len(tokens))
                continue
            if shortest < sys.maxsize:
                _tell_too_long(config, family, column)
            fitting += 1
            yield column.name, tokens
        if not fitting:
            raise UserError(
                f"prompts.source: every {split} prompt of {column.source} leaves no room in a context of {family.context_limit}; "
                f"the shortest has {shortest} tokens"
            )


def _tell_too_long(config: PromptConfig, family: Family, column: TextColumn) -> None:
    """Say once how many prompts of a dataset, in all its parts, are too long."""
    limit = family.context_limit
    if (str(config), limit) in _TOLD:
        return
    _TOLD.add((str(config), limit))
    around = len(_encoded(config, family, "x"))  # what a chat template adds
    count = total = 0
    for _, text in column.texts():
        total += 1
        # No token is less than a byte, so that most texts need not be encoded.
        count += len(text.encode()) + around >= limit and len(_encoded(config, family, text)) >= limit
    what = f"{count} of {total} prompts of {column.source} are left out"
    print(f"prompts.source: {what}: they leave no room in a context of {limit} tokens", file=sys.stderr)


def _parts(column: TextColumn, seed: int) -> dict[Split, NDArray[np.int64]]:
    """Part the distinct texts of a column by the order of their hashes, so that neither repetitions nor the order of rows matter."""
    hashed: NDArray[Any] = np.fromiter(
        ((row, _hash(text, seed)) for row, text in column.texts()), dtype=[("row", np.int64), ("hash", np.uint64)]
    )
    first_rows: NDArray[np.int64] = hashed["row"][np.unique(hashed["hash"], return_index=True)[1]]
    if not len(first_rows):
        raise UserError(f"prompts.source: {column.source} holds no prompt")
    if len(first_rows) < 3:
        raise UserError(f"prompts.source: {column.source} holds {len(first_rows)} distinct prompts; three splits need at least 3")
    tenth = max(1, len(first_rows) // 10)
    return {"test": first_rows[:tenth], "validation": first_rows[tenth : 2 * tenth], "train": first_rows[2 * tenth :]}


def _hash(text: str, seed: int) -> int:
    return int.from_bytes(blake2b(f"{seed}/{text}".encode(), digest_size=8).digest())
