"""Batches of training text, each a pure function of the seed and the step number."""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from random import Random

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from dispatch_rl.pocket import stdlib
from dispatch_rl.pocket.reasoning import Problem, problems

TEXT_SUFFIXES = {".py", ".txt", ".md", ".rst"}

Tokens = NDArray[np.int32]


def folder_files(folders: Sequence[Path]) -> list[Path]:
    """Return the text files below ``folders`` in a fixed order."""
    found = (path for folder in folders for path in sorted(folder.rglob("*")))
    return [path for path in found if path.suffix in TEXT_SUFFIXES and path.is_file()]


def tokenizer_sample(files: Sequence[Path], seed: int) -> Iterator[str]:
    """Yield a few megabytes of both kinds of text to learn merges from."""
    yield from (problem.prompt + problem.solution for problem in islice(problems(seed, held_out=False), 6_000))
    for path in Random(seed).sample(files, min(len(files), 250)):
        yield stdlib.read_text(path)


def encode_documents(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> Tokens:
    """Return the tokens of all ``texts`` in a row, each ended by the end-of-text token."""
    rows = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    return np.concatenate([np.asarray([*row, tokenizer.eos_token_id], dtype=np.int32) for row in rows])


def encode_files(tokenizer: PreTrainedTokenizerFast, files: Sequence[Path]) -> Tokens:
    """Return the tokens of all ``files`` in a row."""
    chunks = [files[i : i + 64] for i in range(0, len(files), 64)]
    return np.concatenate([encode_documents(tokenizer, [stdlib.read_text(path) for path in chunk]) for chunk in chunks])


class Corpus:
    """Draws windows of ``window + 1`` tokens: fresh problems, and excerpts from files.

    Nothing is remembered between steps, so training resumes exactly from a step number.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, files: Tokens, *, window: int, seed: int) -> None:
        self.tokenizer = tokenizer
        self.files = files
        self.window = window
        self.seed = seed

    def batch(self, step: int, rows: int, reasoning_share: float) -> NDArray[np.int64]:
        """Return the tokens ``[rows, window + 1]`` of ``step``; excerpts from files come first, so that every stride sees both kinds."""
        rng = Random(f"{self.seed}/{step}")
        reasoning_rows = round(rows * reasoning_share)
        stream = problems(rng.randrange(2**62), held_out=False)
        reasoning = [self._packed(stream) for _ in range(reasoning_rows)]
        starts = [rng.randrange(len(self.files) - self.window) for _ in range(rows - reasoning_rows)]
        excerpts = [self.files[start : start + self.window + 1] for start in starts]
        return np.stack(excerpts + reasoning).astype(np.int64)

    def _packed(self, stream: Iterator[Problem]) -> Tokens:
        """Return one row of whole problems; the last is cut off."""
        row = np.empty(0, dtype=np.int32)
        while len(row) <= self.window:
            texts = [problem.prompt + problem.solution for problem in islice(stream, 3)]
            row = np.concatenate([row, encode_documents(self.tokenizer, texts)])
        return row[: self.window + 1]
