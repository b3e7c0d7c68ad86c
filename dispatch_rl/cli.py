"""The command line that all commands share: YAML, dotted overrides, short errors.

Every key of a configuration class is an option. ``--config FILE`` may be given several times; later files win over earlier
ones, and options win over files wherever they stand. A section such as ``--family`` takes a file too: one with the section's keys, or one
for another command, whose section of that name is read. Imports nothing heavy, so that ``--help`` is quick.
"""

import difflib
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, Union, get_args, get_origin

from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace, set_parsing_settings
from jsonargparse._actions import _ActionConfigLoad

from dispatch_rl.arguments import rewritten
from dispatch_rl.endings import complaint, discard_output, nobody_reads
from dispatch_rl.errors import UserError

if TYPE_CHECKING:
    from argparse import Action

C = TypeVar("C")

_QUOTED_KEY = re.compile(r"--([\w.\-]+)|option '([\w.]+)'|Option '([\w.]+)'|[Kk]ey '([\w.]+)'|key \"([\w.]+)\"")

_CLASS = re.compile(r"<class '(?:\w+\.)*(\w+)'>")

_NOISE = (
    "Does not validate against any",
    "Subtypes:",
    "Errors:",
    "Expected a <class 'NoneType'>",
    "Given value",
)
"""How the lines begin that say nothing to a user."""

set_parsing_settings(docstring_parse_attribute_docstrings=True)


class HelpFormatter(DefaultHelpFormatter):
    """Names types as people do."""

    def _expand_help(self, action: "Action") -> str:
        return _CLASS.sub(r"\1", super()._expand_help(action))


class Parser(ArgumentParser):
    """A parser whose errors are one line with a suggestion."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print one line and exit with status 2.

        Raises:
            UserError: Inside of another parse, whose own error will carry the message.
        """
        line = f"{_short(message)}{self._suggestion(message)}"
        if not self.exit_on_error:
            raise UserError(line) from ex
        sys.stderr.write(f"error: {line}\n")
        raise SystemExit(2)

    def _suggestion(self, message: str) -> str:
        known = {name.lstrip("-") for action in self._actions for name in action.option_strings}
        candidates = sorted(known | {name.rsplit(".", 1)[-1] for name in known})
        for match in _QUOTED_KEY.finditer(message):
            unknown = next(filter(None, match.groups()))
            if unknown not in known and (near := difflib.get_close_matches(unknown, candidates, n=1)):
                return f"; did you mean {near[0]}?"
        return ""


def make_parser(config_class: type, command: str, description: str) -> Parser:
    """Return a parser with an option for every key of ``config_class``."""
    program = f"python -m dispatch_rl.{command}"
    usage = f"{program} [--config FILE] [--KEY VALUE ...]"
    parser = Parser(prog=program, description=description, usage=usage, formatter_class=HelpFormatter, allow_abbrev=False)
    parser.add_argument("--config", action="config", metavar="FILE", help="YAML file with any of the keys below; repeatable")
    parser.add_class_arguments(config_class, nested_key=None, as_group=False)
    parser.set_defaults(_plain_collections("", config_class()))
    return parser


def parse(parser: Parser, argv: Sequence[str]) -> Namespace:
    """Parse ``argv`` into a namespace of plain values."""
    types = {name: getattr(action, "_typehint", None) for action in parser._actions for name in action.option_strings}
    switches = {name for name, hint in types.items() if hint is bool}
    texts = {name for name, hint in types.items() if _alternatives(hint) & {str, Path}}
    words = {name for name in texts if type(None) not in _alternatives(types[name])}
    sections = {name for action in parser._actions if isinstance(action, _ActionConfigLoad) for name in action.option_strings}
    sections |= {name for name, hint in types.items() if any(map(is_dataclass, _alternatives(hint)))}
    namespace: Namespace = parser.parse_args(rewritten(argv, switches, sections, texts, words))
    return namespace


def _alternatives(hint: Any) -> set[Any]:
    """Return the types that an option of type ``hint`` may have."""
    return set(get_args(hint)) if get_origin(hint) in (Union, UnionType) else {hint}


def build(config_class: type[C], parser: Parser, namespace: Namespace) -> C:
    """Return the configuration object that ``namespace`` describes.

    Raises:
        UserError: A value is out of range.
    """
    # jsonargparse 5 renames the method.
    made = getattr(parser, "instantiate", None) or parser.instantiate_classes
    try:
        values = made(namespace)
    except ValueError as error:
        raise UserError(_short(str(_innermost_user_error(error) or error))) from error
    return config_class(**{field.name: values[field.name] for field in fields(config_class)})  # type: ignore[arg-type]


def _plain_collections(prefix: str, config: Any) -> dict[str, Any]:
    """Return the defaults that are collections of dataclasses as plain values, by dotted key; jsonargparse cannot print others."""
    found: dict[str, Any] = {}
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            found |= _plain_collections(f"{prefix}{field.name}.", value)
        elif isinstance(value, dict):
            found[prefix + field.name] = {k: asdict(v) if is_dataclass(v) else v for k, v in value.items()}  # type: ignore[arg-type]
    return found


def _innermost_user_error(error: BaseException | None) -> UserError | None:
    """Return the :class:`UserError` that led to ``error``, if one did."""
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__ or error.__context__
    return error


def _short(message: str) -> str:
    """Return the telling part of one of jsonargparse's messages in one line."""
    lines = [line.strip(" -\t") for line in message.strip().splitlines()]
    kept = [line for line in lines if line and not line.startswith(_NOISE)]
    return _CLASS.sub(r"\1", re.sub(r"\s+", " ", " ".join(kept)))[:600]


def check_file(key: str, path: Path | None) -> None:
    """Refuse a file to be written that is a folder, before anything is measured.

    Raises:
        UserError: Naming ``key``.
    """
    if path is not None and path.is_dir():
        raise UserError(f"{key}: {path} is a folder; give the name of a file")


def read_config(config_class: type[C], path: Path) -> C:
    """Return the configuration in a YAML file.

    Raises:
        UserError: The file is missing or wrong.
    """
    parser = make_parser(config_class, "train", "")
    parser.exit_on_error = False
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    return build(config_class, parser, parser.parse_path(str(path)))


class _Terminated(KeyboardInterrupt):
    """The process was told to end, as ``wandb agent`` and schedulers do."""


def _terminate(number: int, frame: object) -> NoReturn:
    raise _Terminated


def run(main: Callable[[Sequence[str]], None], argv: Sequence[str] | None = None) -> NoReturn:
    """Run a command with ``argv``, None meaning those of this process; a :class:`UserError` becomes one line and status 2.

    SIGTERM ends the command like Ctrl-C, so that what is open is closed; then the process dies of it, as others expect.
    """
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        try:
            main(sys.argv[1:] if argv is None else argv)
        finally:
            sys.stdout.flush()
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(2) from None
    except BrokenPipeError:
        if not nobody_reads():
            raise
        # Who read the output has seen enough, as `head` does.
        discard_output()
        raise SystemExit(128 + signal.SIGPIPE) from None
    except Exception as error:
        if (line := complaint(error)) is None:
            raise
        sys.stderr.write(f"error: {line}\n")
        raise SystemExit(2) from None
    except _Terminated:
        sys.stderr.write("terminated\n")
        sys.stdout.flush()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)
        raise SystemExit(128 + signal.SIGTERM) from None
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        raise SystemExit(130) from None
    finally:
        signal.signal(signal.SIGTERM, before)
    raise SystemExit(0)
