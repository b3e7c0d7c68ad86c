"""How a command ends where the system fails it: a full disk, a path of no use, an output that nobody reads. Imports nothing heavy."""

import errno
import os
import select
import sys


def nobody_reads() -> bool:
    """Return whether the other end of standard output is closed."""
    poll = select.poll()
    poll.register(sys.stdout, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def discard_output() -> None:
    """Let nothing be written to standard output any more, when Python exits either."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def complaint(error: Exception) -> str | None:
    """Return what is wrong with a disk, or a path that cannot be written or read.

    None stands for anything else, which is ours to mend: its traceback says where.
    """
    path = error.filename if isinstance(error, OSError) else None
    if reason := _no_room(error):
        return f"{path or _full_place()}: {reason}"
    return f"{path}: {error.strerror}" if isinstance(error, OSError) and path is not None else None


def _no_room(error: Exception) -> str | None:
    """Return what the system says, if ``error`` is that of a full disk. What is written in Rust, as safetensors, tells only in words."""
    full = (errno.ENOSPC, errno.EDQUOT)
    number = error.errno if isinstance(error, OSError) else next((n for n in full if f"(os error {n})" in str(error)), None)
    return os.strerror(number) if number in full else None


def _full_place() -> str:
    """Return what could not be written, where an error does not name it."""
    try:
        sys.stdout.flush()
    except OSError:
        discard_output()
        return "standard output"
    return "a file, or standard output, cannot be written"
