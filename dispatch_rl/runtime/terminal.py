"""A text on a terminal while it is written: tokens in the colour of who drafted them, and a line that tells how it goes."""

import shutil
from collections.abc import Mapping
from typing import TextIO

from dispatch_rl.envs.rendering import Colour
from dispatch_rl.runtime.writer import Token

_RESET, _DIM = "\x1b[0m", "\x1b[2m"
_SAVE, _RESTORE, _UP, _CLEAR_LINE = "\x1b7", "\x1b8", "\x1b[1A", "\x1b[2K"


def painted(text: str, colour: Colour | None) -> str:
    """Return ``text`` in a colour; line ends stay outside, so that no terminal paints the rest of a line."""
    if colour is None or not text:
        return text
    start = f"\x1b[38;2;{';'.join(map(str, colour))}m"
    return "\n".join(f"{start}{line}{_RESET}" if line else "" for line in text.split("\n"))


def legend(palette: Mapping[str, Colour]) -> str:
    """Return who has which colour in a line."""
    return f"{_DIM}drafted by{_RESET} {' '.join(painted(name, colour) for name, colour in palette.items())} {_DIM}or nobody{_RESET}"


class Progress:
    """Sums over the rounds so far."""

    def __init__(self) -> None:
        self._tokens = self._drafted = self._accepted = 0
        self._ms = 0.0
        self._last: object = None

    def line(self, token: Token) -> str | None:
        """Return arm, entropy, acceptance and speed after the round that ``token`` begins; None within a round."""
        record = token.round
        if record is None or record is self._last:
            return None
        self._last = record
        self._tokens += len(record.emitted)
        self._drafted += record.num_draft_tokens
        self._accepted += record.num_accepted_tokens
        self._ms += record.latency_ms
        acceptance = f"{self._accepted / self._drafted:.0%}" if self._drafted else "-"
        return (
            f"arm {record.arm:<10} entropy {record.entropies_nats[-1]:5.2f} nats   accepted {record.num_accepted}/{len(record.drafted)}, "
            f"{acceptance} in all   {1000 * self._tokens / self._ms:7.1f} tokens/s"
        )


class StatusLine:
    """Keeps the lowest line of a terminal for a status while text scrolls above it. Use it in a ``with`` statement."""

    def __init__(self, screen: TextIO) -> None:
        self._screen = screen
        self._width, self._height = shutil.get_terminal_size()

    def __enter__(self) -> "StatusLine":
        # A line end first: the cursor may stand on the lowest line. Setting the region that scrolls moves the cursor home.
        self._write(f"\n{_SAVE}\x1b[1;{self._height - 1}r{_RESTORE}{_UP}")
        return self

    def show(self, line: str) -> None:
        """Replace the status."""
        self._write(f"{_SAVE}\x1b[{self._height};1H{_CLEAR_LINE}{_DIM}{line[: self._width - 1]}{_RESET}{_RESTORE}")

    def __exit__(self, *_: object) -> None:
        self._write(f"{_SAVE}\x1b[1;{self._height}r\x1b[{self._height};1H{_CLEAR_LINE}{_RESTORE}")

    def _write(self, text: str) -> None:
        self._screen.write(text)
        self._screen.flush()
