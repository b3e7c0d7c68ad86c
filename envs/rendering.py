"""How a decoded text looks: who drafted what, what stood, and how sure the target was."""

from collections.abc import Callable, Sequence
from itertools import zip_longest

import numpy as np
from numpy.typing import NDArray

from dispatch_rl.decoding.arms import LOOKUP
from dispatch_rl.decoding.rounds import Round

_PALETTE = ((86, 180, 233), (0, 158, 115), (230, 159, 0), (204, 121, 167), (0, 114, 178), (213, 94, 0))
_LOOKUP_COLOUR = (240, 228, 66)
_TARGET_COLOUR = (235, 235, 235)
_REJECTED_COLOUR = (90, 40, 40)
_UNKNOWN = "·"
"""A token that replay does not know."""
_RESET, _DIM, _STRUCK = "\x1b[0m", "\x1b[2m", "\x1b[9m"

STRIP_SHAPE = (96, 512, 3)
"""Height, width and channels of the strip."""
_COLUMN = 4
_ENTROPY_HEIGHT = 48
_FULL_ENTROPY_NATS = 4.0

Colour = tuple[int, int, int]


def colours(students: Sequence[str]) -> dict[str, Colour]:
    """Return a colour for every student and for prompt lookup."""
    return {**{s: _PALETTE[i % len(_PALETTE)] for i, s in enumerate(students)}, LOOKUP: _LOOKUP_COLOUR}


def _painted(text: str, colour: Colour, style: str = "") -> str:
    visible = text.replace("\n", "\\n").replace("\t", "\\t")
    return f"{style}\x1b[38;2;{';'.join(map(str, colour))}m{visible}{_RESET}"


def ansi_round(record: Round, decode: Callable[[list[int]], str], students: Sequence[str]) -> str:
    """Return one line: arm, accepted/drafted, the emitted tokens with their entropies (nats), and the rejected ones struck out."""
    palette = colours(students)
    parts = []
    for i, (token, entropy) in enumerate(zip_longest(record.emitted, record.entropies_nats)):
        colour = palette[record.students[i]] if i < record.num_accepted else _TARGET_COLOUR
        told = "" if entropy is None else f"{_DIM}{entropy:.1f}{_RESET}"
        parts.append(f"{_painted(_UNKNOWN if token is None else decode([token]), colour)}{told}")
    rejected = record.drafted[record.num_accepted :]
    known = [token for token in rejected if token is not None]
    struck = _painted(decode(known) if known else _UNKNOWN * len(rejected), _REJECTED_COLOUR, _STRUCK) if rejected else ""
    head = f"{record.arm:>12} {record.num_accepted:2d}/{len(record.drafted):<2d} {record.latency_ms:6.2f} ms"
    return f"{head} | {' '.join(parts)} {struck}".rstrip()


def strip(rounds: Sequence[Round], students: Sequence[str]) -> NDArray[np.uint8]:
    """Return a picture of the last tokens, newest at the right: entropy as bars above, who wrote each token below.

    A token is four pixels wide; rejected draft tokens are dark red and hang below the one that replaced them.
    """
    height, width, _ = STRIP_SHAPE
    image = np.zeros(STRIP_SHAPE, dtype=np.uint8)
    palette = colours(students)
    columns: list[tuple[Colour, float, int]] = []
    for record in rounds:
        for i, (_, entropy) in enumerate(zip_longest(record.emitted, record.entropies_nats)):
            drafted = i < record.num_accepted
            rejected = 0 if drafted else len(record.drafted) - record.num_accepted
            columns.append((palette[record.students[i]] if drafted else _TARGET_COLOUR, entropy or 0.0, rejected))
    columns = columns[-(width // _COLUMN) :]
    left = width - _COLUMN * len(columns)
    for i, (colour, entropy, rejected) in enumerate(columns):
        x = slice(left + i * _COLUMN, left + (i + 1) * _COLUMN - 1)
        bar = round(min(1.0, entropy / _FULL_ENTROPY_NATS) * _ENTROPY_HEIGHT)
        image[_ENTROPY_HEIGHT - bar : _ENTROPY_HEIGHT, x] = (160, 160, 160)
        image[_ENTROPY_HEIGHT + 2 : _ENTROPY_HEIGHT + 18, x] = colour
        image[_ENTROPY_HEIGHT + 20 : min(height, _ENTROPY_HEIGHT + 20 + 3 * rejected), x] = _REJECTED_COLOUR
    return image
