"""What measured rounds are made of, and the grids of a profile that it is sorted into."""

from collections.abc import Sequence
from statistics import median

import numpy as np

from dispatch_rl.errors import UserError
from dispatch_rl.replay.measured_texts import MeasuredTexts
from dispatch_rl.replay.profile import ForwardLatency

_ENOUGH = 8
"""Fewer measurements of a query length are not worth a row of the grid."""

Samples = dict[tuple[str, int], list[tuple[int, float]]]
"""Context and time (ms) of every measurement, by what was measured and query length."""
NEXT, WATCHED = 0, -1
"""Stand for the query length of draft tokens after the first, and of those whose clearness is watched."""
Wholes = dict[str, list[tuple[int, int, int, float]]]
"""Query length of the first token, context, draft length and time (ms) of the drafts that nobody looked into, by student."""


def part_wholes(wholes: Wholes, samples: Samples) -> None:
    """Sort in what each token after the first took in whole drafts: the time beyond that of a single token with as much to catch up on."""
    for student, drafts in wholes.items():
        first = {query: median(ms for _, ms in rows) for (name, query), rows in samples.items() if name == student and query > 0}
        for query, context, length, ms in drafts:
            if query in first:
                samples[student, NEXT].append((context + length // 2, max(ms - first[query], 0.0) / (length - 1)))


def watch_ms(samples: Samples, students: Sequence[str]) -> float:
    """Return what it costs a student to see how clear its choice is: the mean over the students of the medians' differences."""
    pairs = [[samples[name, kind] for kind in (WATCHED, NEXT)] for name in students if (name, WATCHED) in samples]
    more = [float(np.median([ms for _, ms in watched]) - np.median([ms for _, ms in plain])) for watched, plain in pairs if plain]
    return max(0.0, sum(more) / len(more)) if more else 0.0


def latency(samples: Samples, name: str, texts: MeasuredTexts) -> ForwardLatency:
    """Sort the measurements of one model into a grid. An empty cell takes the value of the cell with the next shorter context.

    Raises:
        UserError: There are none.
    """
    found = {query: rows for (model, query), rows in samples.items() if model == name and query > 0}
    if not found:
        raise UserError(f"profiling.rounds: they were too few to measure '{name}' at all; give more")
    most = max(map(len, found.values()))
    found = {query: rows for query, rows in found.items() if len(rows) >= min(_ENOUGH, most)}
    edges, middles = texts.grid(max(context for rows in found.values() for context, _ in rows))
    queries = sorted(found)
    cells = {query: _cells(found[query], edges) for query in queries}
    following = samples.get((name, NEXT))
    return ForwardLatency(
        queries=tuple(queries),
        contexts=middles,
        median_ms=tuple(tuple(float(v) for v in cells[query][1]) for query in queries),
        next_ms=tuple(float(v) for v in _cells(following, edges)[1]) if following else None,
        quartile_low_ms=tuple(tuple(float(v) for v in cells[query][0]) for query in queries),
        quartile_high_ms=tuple(tuple(float(v) for v in cells[query][2]) for query in queries),
    )


def _cells(rows: Sequence[tuple[int, float]], edges: Sequence[int]) -> np.ndarray:
    """Return lower quartile, median and upper quartile in each cell between two edges ``[3, cells]``."""
    contexts, times = np.array(rows).T
    cell = np.searchsorted(edges, contexts) - 1
    filled = [np.quantile(times[cell == i], [0.25, 0.5, 0.75]) if (cell == i).any() else None for i in range(len(edges) - 1)]
    known = [i for i, value in enumerate(filled) if value is not None]
    return np.array([filled[max([k for k in known if k <= i], default=known[0])] for i in range(len(filled))]).T
