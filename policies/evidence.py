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
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_PRIOR = 2.0
"""Pieces that the prior of the variance is worth."""
_ELSEWHERE = 0.3
"""Pieces that all evidence from other places is worth, and stretches whose level counts."""
_STRETCH_TOKENS = 50.0
"""Tokens of what is worth a stretch."""


class Stretch(NamedTuple):
    """Rounds of one expert on end."""

    expert: int
    tokens: float
    ms: float


class Evidence:
    """Comparisons of experts, by place.

    Args:
        experts: How many there are.
        places: Where evidence is kept, one apart ``[places]``.
        deviation: Standard deviation of a piece before there are any, as a share of the time.
        window: Pieces about a pair that an older one outlives, about.
        half_life: Tokens in one place after which all evidence there counts half.
    """

    def __init__(self, experts: int, places: Floats, deviation: float, window: float, half_life: float) -> None:
        self._places = places
        self._deviation, self._window, self._half_life = deviation, window, half_life
        self._pieces: Floats = np.zeros((experts, len(places), 6, experts))
        """Sums of 1, W, D, W^2, W D and D^2 over the pieces about each pair; D is the last expert's time less the first's."""
        self._level: Floats = np.zeros((len(places), 2))
        """Tokens and time of all stretches."""
        self._everywhere: Floats = np.zeros(2)
        self._text: Floats = np.zeros((experts, 2, experts))
        """Sums of W and D over the comparisons in this text."""
        self._text_tokens, self._text_where = 0.0, 0.0

    @property
    def text_tokens(self) -> float:
        """Tokens that the open piece is about."""
        return self._text_tokens

    def add(self, stretch: Stretch, where: float) -> None:
        """Note what a token takes at ``where``, and that the text was there."""
        part = self._part(where)
        self._level *= (0.5 ** (part * stretch.tokens / self._half_life))[:, None]
        self._level += part[:, None] * [stretch.tokens, stretch.ms]
        self._everywhere = self._level.sum(axis=0)
        self._text_tokens += stretch.tokens
        self._text_where += stretch.tokens * where

    def compare(self, stretch: Stretch, others: Stretch) -> None:
        """Compare a stretch with what another expert did around it."""
        _add(self._text, stretch, others)

    def file(self) -> None:
        """Put the piece about this text where it belongs; what comes next is about another."""
        if self._text_tokens:
            part = self._part(self._text_where / self._text_tokens)[:, None, None]
            piece = _piece(self._text)[:, None]
            self._pieces *= 0.5 ** (part * self._text_tokens / self._half_life) * (1 - part * piece[..., :1, :] / self._window)
            self._pieces += part * piece
        self._text[:] = 0
        self._text_tokens, self._text_where = 0.0, 0.0

    def level_ms(self, where: float, now: Stretch) -> float:
        """Return what a token takes at ``where``, the stretch of ``now`` included (ms); infinite if nothing is known."""
        tokens, ms = (self._nearness(where) @ self._level).tolist()
        all_tokens, all_ms = self._everywhere.tolist()
        share = _ELSEWHERE * _STRETCH_TOKENS / max(all_tokens, 1e-9)
        tokens += share * all_tokens + now.tokens
        return (ms + share * all_ms + now.ms) / tokens if tokens else math.inf

    def against(self, leader: int, where: float, level_ms: float, more: tuple[Stretch, Stretch] | None = None) -> tuple[Floats, Floats]:
        """Return how much longer a token of every expert takes at ``where`` than the leader's, and the standard error.

        Args:
            leader: With whom they are compared.
            where: Conditions.
            level_ms: What a token takes there.
            more: A comparison that counts beside those that were added.

        Returns:
            Differences (ms per token) and standard errors ``[experts]``: zero for the leader, zero and infinity for who was never
            compared with it.
        """
        text = self._text
        if more is not None:
            text = text.copy()
            _add(text, *more)
        about = self._pieces[leader]
        everywhere = about.sum(axis=0)
        near = (self._nearness(where) @ about.reshape(len(about), -1)).reshape(everywhere.shape)
        sums = near + _ELSEWHERE * everywhere / np.maximum(everywhere[0], _ELSEWHERE) + _piece(text[leader])
        known = sums[0] > 1e-6
        n, w, d, ww, wd, dd = np.where(known, sums, 1.0)
        difference = np.where(known, d / w, 0.0)
        around = np.maximum(dd - 2 * difference * wd + difference**2 * ww, 0.0) / ww * n
        prior = (self._deviation * (level_ms + np.abs(difference))) ** 2
        variance = (around + _PRIOR * prior) / (n + _PRIOR)
        error = np.where(known, np.sqrt(variance * ww) / w, np.inf)
        error[leader] = 0.0
        return difference, error

    def _nearness(self, where: float) -> Floats:
        nearness: Floats = np.exp(-0.5 * (self._places - where) ** 2)
        nearness /= nearness.max()
        return nearness

    def _part(self, where: float) -> Floats:
        """Return how something at ``where`` is shared out ``[places]``."""
        place = min(max(where, self._places[0]), self._places[-1])
        part: Floats = np.maximum(0.0, 1 - np.abs(self._places - place))
        return part


def _add(sums: Floats, stretch: Stretch, others: Stretch) -> None:
    a, b = stretch.tokens, others.tokens
    weight = a * b / (a + b)
    difference = weight * (stretch.ms / a - others.ms / b)
    sums[others.expert, :, stretch.expert] += weight, difference
    sums[stretch.expert, :, others.expert] += weight, -difference


def _piece(text: Floats) -> Floats:
    """Return 1, W, D, W^2, W D and D^2 of the sums W and D of a text ``[..., 2, experts]``, in the last place but one."""
    w, d = text[..., 0, :], text[..., 1, :]
    return np.stack([np.sign(w), w, d, w * w, w * d, d * d], axis=-2)
