"""Datasets of prompts, wherever they are: files, folders, the hub, and sets that are known by name."""

import difflib
import glob
import os
import re
from contextlib import nullcontext
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

from dispatch_rl import hub
from dispatch_rl.config import PromptConfig
from dispatch_rl.config.prompts import PROMPT_SETS, PromptSet
from dispatch_rl.errors import UserError, first_line

# `datasets` takes most of a second to import, so it is imported where it is used.

_FORMATS = {".txt": "from_text", ".jsonl": "from_json", ".json": "from_json", ".parquet": "from_parquet"}
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")


def load_dataset(config: PromptConfig) -> Any:
    """Return the ``datasets.Dataset`` that a resolved configuration names.

    Raises:
        UserError: There is none, or it has no such subset or split.
    """
    path = Path(config.source)
    if config.known is not None:
        return _load_known(config, config.known)
    if path.is_dir():
        return _load_folder(config, path)
    if path.suffix in _FORMATS:
        return _load_file(path)
    if _HUB_ID.fullmatch(config.source) and not path.exists():
        return _load_hub(config)
    formats = ", ".join(_FORMATS)
    names = ", ".join(["pocket", *PROMPT_SETS])
    near = difflib.get_close_matches(config.source, PROMPT_SETS, n=1)
    meant = f"; did you mean {near[0]}?" if near else ""
    raise UserError(
        f"prompts.source: {path} is none of {names}, nor a {formats} file, a folder, or OWNER/NAME of a dataset on the hub{meant}"
    )


def _load_known(config: PromptConfig, known: PromptSet) -> Any:
    if known.hub is not None:
        return _load_hub(replace(config, source=known.hub))
    assert known.url is not None
    return _load_file(_fetched(config.source, known.url))


def _fetched(name: str, url: str) -> Path:
    """Return where a file from elsewhere lies in the cache, fetched now if it is not there.

    Raises:
        UserError: It is not there and cannot be fetched.
    """
    import datasets

    path = Path(datasets.config.HF_DATASETS_CACHE) / "dispatch-rl" / f"{name}-{blake2b(url.encode(), digest_size=8).hexdigest()}.jsonl"
    if path.is_file():
        return path
    elsewhere = f"save {url} elsewhere and give --prompts.source=question.jsonl --prompts.column=turns"
    if datasets.config.HF_HUB_OFFLINE:
        raise UserError(f"prompts.source: {name} is not in the local cache, and HF_HUB_OFFLINE=1 is set; {elsewhere}")
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.unfinished")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with urlopen(url, timeout=hub.PATIENCE_S) as answer:
            unfinished.write_bytes(answer.read())
    except OSError as error:
        reason = first_line(error.reason) if isinstance(error, URLError) and isinstance(error.reason, OSError) else first_line(error)
        raise UserError(f"prompts.source: {name} cannot be fetched: {reason}; {elsewhere}") from error
    unfinished.replace(path)
    return path


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

    obstacle = "HF_HUB_OFFLINE=1 is set" if datasets.config.HF_HUB_OFFLINE else hub.obstacle()
    try:
        with hub.cache_only() if obstacle else nullcontext():
            return _prepare(config, config.source)
    except (ConnectionError, datasets.exceptions.DatasetNotFoundError) as error:
        absent = f"prompts.source: {config.source} is neither a file nor a folder here"
        if obstacle:
            raise UserError(f"{absent} nor in the local cache, and {obstacle}") from error
        raise UserError(f"{absent}, and the hub does not have it or stopped answering: {first_line(error)}") from error


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
