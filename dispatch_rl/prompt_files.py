"""Texts from files, folders and the hub. They stay on the disk, as Arrow, and are read when they are asked for."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from dispatch_rl.config import PromptConfig
from dispatch_rl.config.prompts import parse_template
from dispatch_rl.errors import UserError, first_line
from dispatch_rl.progress import quiet_datasets
from dispatch_rl.prompt_sources import load_dataset

# `datasets` takes most of a second to import, so it is imported where it is used.

_NO_ROWS = ("corresponds to no data", "BatchSize must be greater than 0")
"""What ``datasets`` says of data without a row."""
_TEXT_TYPES = ("string", "large_string", "string_view", "extension<arrow.json>")
"""Arrow types of a column that may hold text; the last one holds texts and numbers mixed."""
_NUMBER = re.compile(r"u?int\d+|(half)?float|double|bool")
"""Arrow types that a template may take besides."""


@dataclass(frozen=True)
class TextColumn:
    """The prompts of a dataset on the disk: a column, or a template over several."""

    name: str
    """Name of the file (without its suffix), folder or hub dataset."""
    source: str
    """``prompts.source``."""
    templated: bool
    """Whether there is a template, which takes numbers too."""
    pieces: tuple[tuple[str, str | None], ...]
    """Texts, each with the name of the column whose text follows it, if one does."""
    dataset: Any
    """A ``datasets.Dataset`` with these columns alone."""

    def __getitem__(self, row: int) -> str:
        """Read one text."""
        text = self._filled(self.dataset[row])
        assert text is not None
        return text

    def _filled(self, row: Mapping[str, Any]) -> str | None:
        """Return the text of a row; None if a column holds none, or all of them nothing but blanks."""
        held = {column: _text(row[column], numbers=self.templated) for column in self.dataset.column_names}
        if None in held.values() or not any(text and text.strip() for text in held.values()):
            return None
        return "".join(text + (held[column] or "" if column is not None else "") for text, column in self.pieces)

    def texts(self) -> Iterator[tuple[int, str]]:
        """Yield every row that holds more than blanks, and its prompt.

        Raises:
            UserError: A text cannot be decoded.
        """
        with _reading(self.source):
            columns = self.dataset.column_names
            batches = self.dataset.iter(batch_size=1_000)
            rows = chain.from_iterable(zip(*(batch[column] for column in columns), strict=True) for batch in batches)
            for number, values in enumerate(rows):
                if (text := self._filled(dict(zip(columns, values, strict=True)))) is not None:
                    yield number, text


def _text(value: Any, *, numbers: bool) -> str | None:
    """Return the text of a value: of several turns the first, and a number, where it may be one, as it is written."""
    if isinstance(value, list):
        value = value[0] if value else None
    if numbers and isinstance(value, int | float):
        return str(value)
    return value if isinstance(value, str) else None


def read_column(config: PromptConfig) -> TextColumn:
    """Return the prompts that ``config`` names.

    Raises:
        UserError: The source is missing, of an unknown kind, broken or empty, or it has no such subset, split or column of text.
    """
    config, path = config.resolved(), Path(config.source)
    with _reading(config.source):
        # A dataset may have been saved in another format than Python's own.
        dataset = load_dataset(config).with_format(None)
        pieces = parse_template(config.template) if config.template is not None else [("", config.column)]
        if path.suffix == ".txt" and path.is_file() and config.template is None:
            pieces = [("", "text")]
        columns = sorted({column for _, column in pieces if column is not None})
        _check_columns(config, dataset, columns)
        name = path.stem if path.is_file() else config.source if config.known else path.resolve().name
        return TextColumn(name, config.source, config.template is not None, tuple(pieces), dataset.select_columns(columns))


def _check_columns(config: PromptConfig, dataset: Any, columns: Iterable[str]) -> None:
    key = "prompts.column" if config.template is None else "prompts.template"
    for column in columns:
        if column not in dataset.column_names:
            raise UserError(f"{key}: {config.source} has no column '{column}'; it has {', '.join(dataset.column_names)}")
        kind = dataset.features.arrow_schema.field(column).type
        is_number = config.template is not None and _NUMBER.fullmatch(str(kind))
        if str(getattr(kind, "value_type", kind)) not in _TEXT_TYPES and not is_number:
            raise UserError(f"{key}: column '{column}' of {config.source} holds {kind}, not text")


@contextmanager
def _reading(source: str) -> Iterator[None]:
    """Keep ``datasets`` quiet, and make one line of whatever goes wrong in it."""
    try:
        with quiet_datasets():
            yield
    except UserError:
        raise
    except Exception as error:  # nearly every type there is, StopIteration and IndexError for data without a row included
        raise UserError(f"prompts.source: {source} {_complaint(Path(source), error)}") from error


def _complaint(path: Path, error: BaseException) -> str:
    """Return what an error means, by what lies beneath it: what ``datasets`` itself says is vague."""
    from datasets.table import CastError

    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, StopIteration | IndexError) or any(words in str(error) for words in _NO_ROWS):
        return "holds no prompt"
    if isinstance(error, CastError):
        return f"has files with different columns: in one of them {error.details()}"
    # Arrow counts lines within a block and names no file, so a broken text is read again.
    flaw = next(_flaws(path), None) if isinstance(error, ValueError) else None
    return f"cannot be read: {flaw or first_line(error)}"


def _flaws(path: Path) -> Iterator[str]:
    """Yield what is wrong with each line of a text file, or of those in a folder, that is not UTF-8 or not a JSON object."""
    for file in [path, *sorted(path.rglob("*"))]:
        if file.suffix in {".txt", ".jsonl"} and file.is_file():
            with file.open("rb") as lines:
                for number, line in enumerate(lines, 1):
                    if flaw := _flaw(line, is_json=file.suffix == ".jsonl"):
                        yield f"line {number} of {file.name} is {flaw}"


def _flaw(line: bytes, *, is_json: bool) -> str | None:
    try:
        text = line.decode("utf-8-sig").rstrip()
        if is_json and text and not isinstance(json.loads(text), dict):
            return "no JSON object"
    except UnicodeDecodeError:
        return "not UTF-8 text"
    except json.JSONDecodeError as error:
        return f"no JSON: {error.msg} (column {error.colno})"
    return None
