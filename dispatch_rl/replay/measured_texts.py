"""The texts over which latencies are measured: how long they are, and how the measurements are sorted by context."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from dispatch_rl.config import ProfilingConfig
from dispatch_rl.decoding.families import Family
from dispatch_rl.decoding.sampling import Sampling
from dispatch_rl.decoding.session import DecodingSession
from dispatch_rl.errors import UserError

_CONTEXTS = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
_PROMPT = 16
_SPAN = 256
"""How far a text is followed up to a context that is asked for (tokens)."""


@dataclass(frozen=True)
class MeasuredTexts:
    """Random texts, and the contexts between which measurements are taken together."""

    spans: tuple[tuple[int, int], ...]
    """Length of the prompt and of the whole text (tokens), for every kind of text."""
    edges: tuple[int, ...]
    """Contexts (tokens) that part the measurements, rising from 0 to the longest text or beyond."""
    middles: tuple[int, ...]
    """The context (tokens) that stands for what lies between two edges."""

    @classmethod
    def of(cls, family: Family, settings: ProfilingConfig, longest_draft: int) -> "MeasuredTexts":
        """Return the texts that ``settings`` asks for.

        Raises:
            UserError: The family reads too little for drafts of ``longest_draft`` tokens.
        """
        readable = min([family.context_limit, *(student.context_limit for student in family.students.values())])
        longest = min(settings.longest_context, readable)
        ends = (longest,) if settings.contexts is None else tuple(c for c in settings.contexts if c <= readable) or (readable,)
        if ends[0] < _PROMPT + longest_draft + 2:
            raise UserError(f"profiling: drafts of {longest_draft} tokens leave no room in texts of {ends[0]}; lower draft_lengths")
        if settings.contexts is None:
            edges = (0, *_CONTEXTS[: int(np.searchsorted(_CONTEXTS, longest))], longest)
            return cls(((_PROMPT, longest),), edges, _middles(edges))
        spans = tuple((max(_PROMPT, end - _SPAN), end) for end in ends)
        return cls(spans, (0, *ends), tuple(round((begin + end) / 2) for begin, end in spans))

    def sessions(self, family: Family, sampling: Sampling, seed: int) -> Iterator[DecodingSession]:
        """Begin texts that no end-of-sequence token ends, over and over, of every length equally often."""
        endless = replace(family, eos_token_ids=frozenset())
        rng = np.random.default_rng(seed)
        while True:
            for i in rng.permutation(len(self.spans)):
                begin, end = self.spans[i]
                prompt: list[int] = rng.integers(family.vocab, size=(begin,)).tolist()
                yield DecodingSession(endless, prompt, replace(sampling, seed=int(rng.integers(2**62))), end - begin)

    def grid(self, longest: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return edges and middles, of contexts up to ``longest`` only."""
        cells = int(np.searchsorted(self.edges[1:], longest)) + 1
        return self.edges[: cells + 1], self.middles[:cells]


def _middles(edges: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(round((low + high) / 2) for low, high in pairwise(edges))
