"""The Python standard library of the running interpreter as text to learn from.

Files are read from the interpreter's own folder; none is copied into the repository.
"""

import sysconfig
from collections.abc import Iterator
from pathlib import Path

HELD_OUT_MODULES = (
    "bisect.py",
    "calendar.py",
    "configparser.py",
    "fractions.py",
    "graphlib.py",
    "heapq.py",
    "json/decoder.py",
    "queue.py",
    "sched.py",
    "shlex.py",
    "statistics.py",
    "string.py",
    "textwrap.py",
    "zipapp.py",
    "test/test_bisect.py",
    "test/test_fractions.py",
    "test/test_heapq.py",
    "test/test_textwrap.py",
)
"""Modules that training never sees; code prompts and held-out losses come from them."""

_SKIPPED_FOLDERS = {"site-packages", "__pycache__", "idlelib", "lib2to3", "turtledemo", "data"}
_LARGEST_FILE_BYTES = 400_000


def _folder() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def training_files() -> Iterator[Path]:
    """Yield every module and test of the library but the held-out ones, in a fixed order."""
    folder = _folder()
    for path in sorted(folder.rglob("*.py")):
        name = path.relative_to(folder)
        if name.as_posix() in HELD_OUT_MODULES or _SKIPPED_FOLDERS.intersection(name.parts):
            continue
        if path.stat().st_size <= _LARGEST_FILE_BYTES:
            yield path


def held_out_files() -> Iterator[Path]:
    """Yield the held-out modules that this interpreter has (some ship without tests)."""
    folder = _folder()
    return (folder / name for name in HELD_OUT_MODULES if (folder / name).is_file())


def read_text(path: Path) -> str:
    """Return the file as text; bytes that are not UTF-8 become replacement characters."""
    return path.read_bytes().decode("utf-8", errors="replace").replace("\r\n", "\n")
