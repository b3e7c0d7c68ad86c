"""What people and W&B's agents type, written as jsonargparse reads it."""

import ast
import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from dispatch_rl.errors import UserError

_NOTHING = ("null", "Null", "NULL", "~", "None")
"""What YAML, or Python, writes for no value."""


def rewritten(
    argv: Sequence[str], switches: Collection[str], sections: Collection[str], texts: Collection[str], words: Collection[str]
) -> list[str]:
    """Return ``argv`` with files first, sections read from their files, switches with values, and values as YAML.

    Args:
        argv: What was typed, or written by an agent.
        switches: Options that are true if they stand alone.
        sections: Options that take a file with a section's keys.
        texts: Options whose value may be text: what looks like a list stays as it is.
        words: Those of them that are never null.

    Raises:
        UserError: A section's file is missing or wrong.
    """
    return _normalised(_sections_read(_switched_on(argv, switches), sections), texts, words)


def _switched_on(argv: Sequence[str], switches: Collection[str]) -> Iterator[str]:
    """Yield ``argv`` with ``=true`` behind every one of ``switches`` that stands without a value."""
    for word, after in zip_longest(argv, argv[1:], fillvalue=""):
        bare = _plain_name(word) in switches and after.lower() not in ("true", "false", "yes", "no")
        yield f"{word}=true" if bare else word


def _sections_read(argv: Iterable[str], sections: Collection[str]) -> Iterator[str]:
    """Yield ``argv`` with the sections that are given as files read from them, as if each were a file for ``--config``."""
    remaining = iter(argv)
    for word in remaining:
        name, equals, value = word.partition("=")
        if name not in sections:
            yield word
            continue
        value = value if equals else next(remaining, "")
        section = name.removeprefix("--")
        is_value = value in _NOTHING or value.lstrip().startswith("{")
        yield f"{name}={value}" if is_value else f"--config={json.dumps({section: _section(section, value)})}"


def _section(name: str, file: str) -> dict[str, Any]:
    """Return a section's keys from a file of them, or of a whole configuration.

    Raises:
        UserError: The file is missing, no YAML, or holds something else.
    """
    import yaml

    if not Path(file).is_file():
        raise UserError(f"{name}: there is no file {file!r}")
    try:
        content = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{name}: {file} is no YAML: {' '.join(str(error).split())}") from error
    found = content.get(name, content) if isinstance(content, dict) else content
    if not isinstance(found, dict):
        raise UserError(f"{name}: {file} holds no keys of a section")
    return found


def _plain_name(option: str) -> str:
    """Return an option's name with ``-`` written as ``_``."""
    return "--" + option[2:].replace("-", "_") if option.startswith("--") else option


def _normalised(argv: Iterable[str], texts: Collection[str], words: Collection[str]) -> list[str]:
    """Move ``--config`` to the front, write ``-`` in option names as ``_``, and values as YAML."""
    files: list[str] = []
    rest: list[str] = []
    remaining = iter(argv)
    awaiting = None
    for word in remaining:
        name, equals, value = word.partition("=")
        if name == "--config":
            files += [f"--config={value if equals else next(remaining, '')}"]
            awaiting = None
        elif name.startswith("--") and " " not in name:  # as argparse: what holds a space is a value
            option = _plain_name(name)
            rest.append(f"{option}={_as_yaml(value, option in texts, option in words)}" if equals else option)
            awaiting = None if equals else option
        else:
            rest.append(word if awaiting is None else _as_yaml(word, awaiting in texts, awaiting in words))
            awaiting = None
    return files + rest


def _as_yaml(value: str, is_text: bool, is_word: bool) -> str:
    """Return a value as YAML writes it: agents of W&B write values as Python does, as ``None`` or ``[True, None]``."""
    if value == "None":
        return value if is_word else "null"
    if is_text or not value.startswith(("[", "{")):
        return value
    try:
        return json.dumps(ast.literal_eval(value), ensure_ascii=False)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return value  # it is YAML already, or wrong, which the parser will say
