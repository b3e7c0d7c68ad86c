"""A disk without room is one line, whoever meets it, and leaves nothing half-written where a bundle was to be."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from dispatch_rl import cli
from dispatch_rl.decoding.families import Family
from dispatch_rl.runtime import bundle as bundles
from tests.bundles import pocket_bundle, write

ROOT = Path(__file__).resolve().parents[1]
RUST = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
"""As safetensors 0.6 raises it."""


def raising(error: Exception) -> Callable[..., None]:
    """Return what raises ``error``, whatever it is called with."""

    def fail(*_: Any, **__: Any) -> None:
        raise error

    return fail


def said(main: Callable[[Sequence[str]], None], capsys: pytest.CaptureFixture[str]) -> str:
    """Return what a command says that must end with status 2."""
    with pytest.raises(SystemExit) as stop:
        cli.run(main, [])
    assert stop.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "a file, or standard output, cannot be written: No space left on device"),
        (OSError(errno.ENOSPC, "No space left on device", "runs/x"), "runs/x: No space left on device"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "a file, or standard output, cannot be written: Disk quota exceeded"),
        (RUST, "a file, or standard output, cannot be written: No space left on device"),
    ],
    ids=["without a path", "with a path", "quota", "safetensors"],
)
def test_a_full_disk_is_one_line(error: Exception, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    """With the path, if it is known."""
    assert said(raising(error), capsys) == f"error: {line}\n"


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), SafetensorError("Error while serializing: os error 2")])
def test_other_errors_keep_their_traceback(error: Exception) -> None:
    """They are ours to mend."""
    with pytest.raises(type(error)):
        cli.run(raising(error), [])


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="there is no /dev/full here")
@pytest.mark.parametrize("command", ["print('a text', flush=True)", "print('still in the buffer')", "(print('help'), sys.exit())"])
@pytest.mark.parametrize(("unbuffered", "what"), [("", "standard output"), ("1", "a file, or standard output, cannot be written")])
def test_output_to_a_full_disk_is_one_line(command: str, unbuffered: str, what: str) -> None:
    """And nothing is said of what is still in the buffer when Python exits."""
    code = f"import sys; from dispatch_rl import cli; cli.run(lambda argv: {command}, [])"
    with open("/dev/full", "w") as full:
        call: Any = {"cwd": ROOT, "env": {**os.environ, "PYTHONUNBUFFERED": unbuffered}, "stdout": full, "stderr": subprocess.PIPE}
        result = subprocess.run([sys.executable, "-c", code], check=False, text=True, **call)
    assert (result.returncode, result.stderr) == (2, f"error: {what}: No space left on device\n")


@pytest.mark.parametrize("part", ["save_file", "write_json"])
def test_a_bundle_that_cannot_be_written_leaves_nothing(pocket: Family, part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder that was there stays as it was, and no unfinished one stands beside it."""
    bundle, path = pocket_bundle(pocket), tmp_path / "bundle"
    write(bundle, path)
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    monkeypatch.setattr(bundles, part, raising(RUST))
    with pytest.raises(SafetensorError):
        write(bundle, path)
    assert [*tmp_path.iterdir()] == [path]
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before
