"""Texts from files, folders and the hub. They stay on the disk, as Arrow, and are read when they are asked for."""

import glob
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from dispatch_rl.config import PromptConfig
from dispatch_rl.errors import UserError, first_line
from dispatch_rl.progress import quiet_datasets

# `datasets` takes most of a second to import, so it is imported where it is used.

_FORMATS = {".txt": "from_text", ".jsonl": "from_json", ".json": "from_json", ".parquet": "from_parquet"}
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_NO_ROWS = ("corresponds to no data", "BatchSize must be greater than 0")
"""What ``datasets`` says of data without a row."""
_TEXT_TYPES = ("string", "large_string", "string_view", "extension<arrow.json>")
"""Arrow types of a column that may hold text; the last one holds texts and numbers mixed."""


@dataclass(frozen=True)
class TextColumn:
    """One column of a dataset on the disk."""

    name: str
    """Name of the file (without its suffix), folder or hub dataset."""
    source: str
    """``prompts.source``."""
    column: str
    """Name of the column."""
    dataset: Any
    """A ``datasets.Dataset`` with this column alone."""

    def __getitem__(self, row: int) -> str:
        """Read one text."""
        text: str = self.dataset[row][self.column]
        return text

    def texts(self) -> Iterator[tuple[int, str]]:
        """Yield every row that holds more than blanks, and its text.

        Raises:
            UserError: A text cannot be decoded.
        """
        with _reading(self.source):
            batches = self.dataset.iter(batch_size=1_000)
            for row, text in enumerate(chain.from_iterable(batch[self.column] for batch in batches)):
                if isinstance(text, str) and text.strip():
                    yield row, text


def read_column(config: PromptConfig) -> TextColumn:
    """Return the column of prompts that ``config`` names.

    Raises:
        UserError: The source is missing, of an unknown kind, broken or empty, or it has no such subset, split or column of text.
    """
    path = Path(config.source)
    with _reading(config.source):
        # A dataset may have been saved in another format than Python's own.
        dataset = _load(config, path).with_format(None)
        column = "text" if path.suffix == ".txt" and path.is_file() else config.column
        if column not in dataset.column_names:
            there = ", ".join(dataset.column_names)
            raise UserError(f"prompts.column: {config.source} has no column '{column}'; it has {there}")
        held = str(dataset.features.arrow_schema.field(column).type)
        if held not in _TEXT_TYPES:
            raise UserError(f"prompts.column: column '{column}' of {config.source} holds {held}, not text")
        name = path.stem if path.is_file() else path.resolve().name
        return TextColumn(name, config.source, column, dataset.select_columns([column]))


def _load(config: PromptConfig, path: Path) -> Any:
    if path.is_dir():
        return _load_folder(config, path)
    if path.suffix in _FORMATS:
        return _load_file(path)
    if _HUB_ID.fullmatch(config.source) and not path.exists():
        return _load_hub(config)
    formats = ", ".join(_FORMATS)
    raise UserError(f"prompts.source: {path} is neither 'pocket' nor a {formats} file, a folder, or OWNER/NAME of a dataset on the hub")


def _load_file(path: Path) -> Any:
    import datasets

    if not path.is_file():
        raise UserError(f"prompts.source: there is no file {path}")
    if path.stat().st_size == 0:
        raise UserError(f"prompts.source: {path} is empty")
    # Its file names are patterns, and `load_dataset` would ask the hub even for a local file.
    return getattr(datasets.Dataset, _FORMATS[path.suffix])(glob.escape(str(path)))


def _load_folder(config: PromptConfig, path: Path) -> Any:
    import datasets

    if (path / "state.json").is_file():
        return datasets.load_from_disk(str(path))
    if (path / "dataset_dict.json").is_file():
        splits = datasets.load_from_disk(str(path))
        _check_split(config, splits)
        return splits[config.dataset_split]
    # A relative path such as `json` would be taken for a format.
    folder = str(path.resolve())
    if glob.escape(folder) != folder:
        raise UserError(f"prompts.source: the *, ? or [ in {folder} would be taken for a pattern of names; rename the folder")
    return _prepare(config, folder)


def _load_hub(config: PromptConfig) -> Any:
    import datasets

    try:
        return _prepare(config, config.source)
    except (ConnectionError, datasets.exceptions.DatasetNotFoundError) as error:
        absent = f"{config.source} is neither a file nor a folder here, and the hub cannot be reached or does not have it"
        raise UserError(f"prompts.source: {absent}: {first_line(error)}") from error


def _prepare(config: PromptConfig, source: str) -> Any:
    """Do what ``load_dataset`` does, with a look at the splits before one is chosen."""
    builder = _builder(config, source)
    builder.download_and_prepare()
    _check_split(config, builder.info.splits)
    return builder.as_dataset(split=config.dataset_split)


def _builder(config: PromptConfig, source: str) -> Any:
    import datasets

    try:
        return datasets.load_dataset_builder(source, config.subset)
    except ValueError as error:
        subsets = datasets.get_dataset_config_names(source)
        if config.subset in subsets or (config.subset is None and len(subsets) == 1):
            raise
        wrong = "has several subsets" if config.subset is None else f"has no subset '{config.subset}'"
        raise UserError(f"prompts.subset: {config.source} {wrong}; choose from {', '.join(subsets)}") from error


def _check_split(config: PromptConfig, splits: dict[str, Any]) -> None:
    if config.dataset_split not in splits:
        raise UserError(f"prompts.dataset_split: {config.source} has no split '{config.dataset_split}'; it has {', '.join(splits)}")


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
