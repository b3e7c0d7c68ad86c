"""Who is faster than whom, from stretches of the same texts.

Texts differ far more than experts do: in one, any arm takes ten times as long as in another. So an expert's stretch is only ever compared
with the leader's stretches just before and behind it. A comparison of ``a`` tokens in ``s`` ms with ``b`` tokens in ``t`` ms is a weight
and the weighted difference of two rates,

    W = a b / (a + b),    D = W (s / a - t / b),

as in Mantel and Haenszel's estimates from strata ("Statistical aspects of the analysis of data from retrospective studies of disease",
1959). Those of one text tell about that text: they are summed and are *one* piece of evidence, however many they are. Over the pieces, the
difference is ``d = sum D / sum W``, and its standard error

    s^2 = V (sum W^2) / (sum W)^2,    V: variance of a piece's difference around d, weighted by W^2,

with a prior for ``V`` worth two pieces, since few pieces may look alike by chance: the standard deviation is a share of ``r + |d|``, where
``r`` is what a token takes.

Pieces are kept by *conditions*: places on a scale, between which a piece is shared out. What was learned about one sort of text is still
there when that sort comes back. In one place, old evidence is forgotten: half of it after so many tokens there, and that about a pair as
newer about it comes in (Garivier & Moulines, "On upper-confidence bound policies for switching bandit problems", 2011).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_PRIOR = 2.0
"""Pieces that the prior of the variance is worth."""
_NARROW = 0.75
"""What evidence counts at another place falls as ``exp(-0.75 distance^2)``."""
_ELSEWHERE = 0.3
"""Pieces that all evidence from other places is worth, and stretches whose level counts."""
_STRETCH_TOKENS = 50.0
"""Tokens of what is worth a stretch."""
_STEPS = 4
"""Conditions are told apart to a fourth of the distance of two places."""
_NOTHING = 1e-6
"""Pieces that are as good as none."""


class Stretch(NamedTuple):
    """Rounds of one expert on end."""

    expert: int
    tokens: float
    ms: float


class Estimate(NamedTuple):
    """How much longer an expert takes than another."""

    difference: float
    """Milliseconds per token."""
    error: float
    """Standard error."""


class Evidence:
    """Comparisons of experts, by place.

    It is asked between two forward passes, when nothing is in the processor's cache and every call of numpy costs microseconds. So an
    estimate, once made, stands until there is new evidence.

    Args:
        experts: How many there are.
        places: Where evidence is kept, one apart ``[places]``.
        deviation: Standard deviation of a piece before there are any, as a share of the time.
        window: Pieces about a pair that an older one outlives, about.
        half_life: Tokens in one place after which all evidence there counts half.
    """

    def __init__(self, experts: int, places: Sequence[float], deviation: float, window: float, half_life: float) -> None:
        self._places = tuple(places)
        self._deviation, self._window, self._half_life = deviation, window, half_life
        self._sums: Floats = np.zeros((experts, len(self._places) + 2, 6, experts))
        """Of 1, W, D, W^2, W D and D^2 over the pieces about each pair; D is the last expert's time less the first's. A row for every
        place, one for all of them, with what that counts anywhere, and one for the open text."""
        self._level = [(0.0, 0.0)] * len(self._places)
        """Tokens and time of all stretches, by place."""
        self._text: Floats = np.zeros((experts, 2, experts))
        """Sums of W and D over the comparisons in this text."""
        self._text_tokens, self._text_where = 0.0, 0.0
        self._found: dict[tuple[int, int], list[Estimate]] = {}
        """What all of this says about a leader in conditions, in steps, as far as it was asked."""

    @property
    def text_tokens(self) -> float:
        """Tokens that the open piece is about."""
        return self._text_tokens

    def add(self, stretch: Stretch, where: float) -> None:
        """Note what a token takes at ``where``, and that the text was there."""
        for i, ((tokens, ms), part) in enumerate(zip(self._level, self._part(where), strict=True)):
            kept = 0.5 ** (part * stretch.tokens / self._half_life)
            self._level[i] = kept * tokens + part * stretch.tokens, kept * ms + part * stretch.ms
        self._text_tokens += stretch.tokens
        self._text_where += stretch.tokens * where

    def compare(self, stretch: Stretch, others: Stretch) -> None:
        """Compare a stretch with what another expert did around it."""
        weight, difference = _compared(stretch, others)
        self._text[others.expert, :, stretch.expert] += weight, difference
        self._text[stretch.expert, :, others.expert] += weight, -difference
        self._sums[:, -1] = _piece(self._text)
        self._found.clear()

    def file(self) -> None:
        """Put the piece about this text where it belongs; what comes next is about another."""
        if self._text_tokens:
            part = np.array(self._part(self._text_where / self._text_tokens))[:, None, None]
            pieces, piece = self._sums[:, :-2], self._sums[:, -1:]
            pieces *= 0.5 ** (part * self._text_tokens / self._half_life) * (1 - part * piece[..., :1, :] / self._window)
            pieces += part * piece
            everywhere = pieces.sum(axis=1)
            self._sums[:, -2] = _ELSEWHERE * everywhere / np.maximum(everywhere[:, :1], _ELSEWHERE)
        self._sums[:, -1] = 0
        self._text[:] = 0
        self._text_tokens, self._text_where = 0.0, 0.0
        self._found.clear()

    def level_ms(self, where: float) -> float:
        """Return what a token takes at ``where`` (ms); infinite if nothing is known."""
        elsewhere = _ELSEWHERE * _STRETCH_TOKENS / max(sum(tokens for tokens, _ in self._level), 1e-9)
        tokens = ms = 0.0
        for near, (tokens_there, ms_there) in zip(self._nearness(where), self._level, strict=True):
            tokens += (near + elsewhere) * tokens_there
            ms += (near + elsewhere) * ms_there
        return ms / tokens if tokens else math.inf

    def against(self, leader: int, where: float) -> list[Estimate]:
        """Return how much longer a token of every expert takes at ``where``, or very near, than the leader's ``[experts]``.

        That is zero and exact for the leader, zero with an infinite error for who was never compared with it.
        """
        step = round(where * _STEPS)
        found = self._found.get((leader, step))
        if found is None:
            found = self._found[leader, step] = self._estimates(leader, step / _STEPS)
        return found

    def with_another(self, stretch: Stretch, others: Stretch, where: float) -> Estimate:
        """Return how much longer a token takes at ``where`` than another expert's, with a comparison of both that is not to be kept."""
        text: list[float] = self._text[others.expert, :, stretch.expert].tolist()
        w, d = (known + further for known, further in zip(text, _compared(stretch, others), strict=True))
        weights = np.array([*self._nearness(where), 1.0])
        sums: list[float] = weights.dot(self._sums[others.expert, :-1, :, stretch.expert]).tolist()
        piece = (1.0, w, d, w * w, w * d, d * d)
        return self._estimate(self.level_ms(where), *(known + further for known, further in zip(sums, piece, strict=True)))

    def _estimates(self, leader: int, where: float) -> list[Estimate]:
        about, level_ms = self._sums[leader], self.level_ms(where)
        weights = np.array([*self._nearness(where), 1.0, 1.0])
        sums = weights.dot(about.reshape(len(about), -1)).reshape(about.shape[1:])
        found = [self._estimate(level_ms, *pair) for pair in sums.T.tolist()]
        found[leader] = Estimate(0.0, 0.0)
        return found

    def _estimate(self, level_ms: float, n: float, w: float, d: float, ww: float, wd: float, dd: float) -> Estimate:
        """Return what the sums over a pair's pieces make."""
        if n <= _NOTHING:
            return Estimate(0.0, math.inf)
        difference = d / w
        around = max(dd - 2 * difference * wd + difference**2 * ww, 0.0) / ww * n
        prior = (self._deviation * (level_ms + abs(difference))) ** 2
        variance = (around + _PRIOR * prior) / (n + _PRIOR)
        return Estimate(difference, math.sqrt(variance * ww) / w)

    def _nearness(self, where: float) -> list[float]:
        """Return what evidence of each place counts at ``where``: most at the nearest, where it is one."""
        logarithms = [-_NARROW * (place - where) ** 2 for place in self._places]
        nearest = max(logarithms)
        return [math.exp(logarithm - nearest) for logarithm in logarithms]

    def _part(self, where: float) -> list[float]:
        """Return how something at ``where`` is shared out ``[places]``."""
        inside = min(max(where, self._places[0]), self._places[-1])
        return [max(0.0, 1 - abs(place - inside)) for place in self._places]


def _compared(stretch: Stretch, others: Stretch) -> tuple[float, float]:
    """Return W and D of one comparison."""
    weight = stretch.tokens * others.tokens / (stretch.tokens + others.tokens)
    return weight, weight * (stretch.ms / stretch.tokens - others.ms / others.tokens)


def _piece(text: Floats) -> Floats:
    """Return 1, W, D, W^2, W D and D^2 of the sums W and D of a text ``[..., 2, experts]``, in the last place but one."""
    w, d = text[..., 0, :], text[..., 1, :]
    return np.stack([np.sign(w), w, d, w * w, w * d, d * d], axis=-2)
