"""The command of a run, as ``wandb agent`` writes it."""

import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from dispatch_rl.errors import UserError
from dispatch_rl.sweeping.space import Parameter

TRAIN = "dispatch_rl.train"
DEFAULT = ("${env}", "${interpreter}", "${program}", "${args}")
"""What W&B takes for a file without ``command``."""

_MACRO = re.compile(r"\$\{(.*)\}")
_VARIABLE = re.compile(r"\$\{envvar:([A-Z0-9_]*)\}")
_NOT_READ = {"args_no_hyphens", "args_json", "args_json_file", "args_append_hydra", "args_override_hydra"}


def nested(values: Mapping[Parameter, Any]) -> dict[str, Any]:
    """Return values as an agent gets them: those of nested ``parameters`` as one mapping for each outermost key."""
    made: dict[str, Any] = {}
    for parameter, value in values.items():
        inner = made
        for key in parameter.path[:-1]:
            inner = inner.setdefault(key, {})
        inner[parameter.path[-1]] = value
    return made


def arguments(values: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the macros of arguments, written as Python writes values: ``--l=[64, 64]``, ``--flag=True``, ``--x=None``."""
    return {
        "args": [f"--{key}={value}" for key, value in values.items()],
        "args_no_equals": [word for key, value in values.items() for word in (f"--{key}", str(value))],
        "args_no_boolean_flags": [
            f"--{key}" if value is True else f"--{key}={value}" for key, value in values.items() if value is not False
        ],
    }


def expand(command: Sequence[Any], program: str, values: Mapping[str, Any], where: str) -> list[str]:
    """Return the words of a run's command.

    Args:
        command: The ``command`` of the file.
        program: Its ``program``.
        values: Of the parameters, by option.
        where: File and key, for errors.

    Raises:
        UserError: A macro is not known, or the command trains nothing.
    """
    macros = {"env": ["/usr/bin/env"], "interpreter": [sys.executable], "program": [program], **arguments(values)}
    words: list[str] = []
    for chunk in command:
        # Like an agent, leave the bare name where there is no such variable.
        text = _VARIABLE.sub(lambda match: os.environ.get(match[1], match[1]), str(chunk))
        macro = _MACRO.fullmatch(text)
        if macro is None:
            words.append(text)
        elif macro[1] in macros:
            words += macros[macro[1]]
        else:
            known = f"{TRAIN} does not read it; write ${{args}}" if macro[1] in _NOT_READ else f"there are {', '.join(macros)}, envvar:NAME"
            raise UserError(f"{where}: the macro {text} cannot be used: {known}")
    if TRAIN not in words or words[words.index(TRAIN) - 1] != "-m":
        raise UserError(f"{where}: it does not run '-m {TRAIN}', the only program that is run without W&B")
    return words


def parts(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the words up to the program, and its options."""
    end = words.index(TRAIN) + 1
    return list(words[:end]), list(words[end:])
