"""Measuring a profile in the code that is deployed: whole rounds of real decoding, students and target taking turns as they will.

A forward pass alone in a loop is faster than the same pass in a round, because its weights are still at hand; and the target verifies
faster behind a small student, which displaces less of it, than behind a large one. So nothing is timed apart: texts are decoded in
stretches of one student each, as dispatchers do, with random draft lengths and, where a stretch begins, random catch-ups, and the times of
the parts of all rounds are sorted into grids.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from time import perf_counter

import numpy as np
import torch

from dispatch_rl.config import DecodingConfig, ProfilingConfig
from dispatch_rl.decoding.arms import LOOKUP, NONE, Arm, ArmTable
from dispatch_rl.decoding.families import Family
from dispatch_rl.decoding.graphs import capture_graphs
from dispatch_rl.decoding.loop import warm_up
from dispatch_rl.decoding.rounds import Round
from dispatch_rl.decoding.sampler import Sampler
from dispatch_rl.decoding.session import DecodingSession
from dispatch_rl.kernels.operations import operations
from dispatch_rl.replay.fingerprint import family_fingerprint
from dispatch_rl.replay.measured_texts import MeasuredTexts
from dispatch_rl.replay.profile import TARGET, Profile
from dispatch_rl.replay.samples import NEXT, WATCHED, Samples, Wholes, latency, part_wholes, watch_ms
from dispatch_rl.runs import environment

_CATCH_UPS = (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
STRETCH = 6
"""Rounds with the same student."""
_WATCHED_ROUNDS = 0.3
"""Share of the rounds in which students watch how clear their choices are, if any arm calls for it."""
_SINGLE = 0.3
"""Share of those behind the first of a stretch that are of one token, with which the longer ones are compared."""
_SURE = 0.0
"""A limit of the margin that stops no draft."""


def measure(
    family: Family, config: DecodingConfig, settings: ProfilingConfig, progress: Callable[[int], None] = lambda rounds: None
) -> Profile:
    """Decode ``settings.rounds`` rounds and return the latencies of their parts.

    Args:
        family: The models.
        config: Its sampling is used, and the lengths of its arms.
        settings: How much is measured.
        progress: Told the number of rounds that are done.
    """
    samples: Samples = defaultdict(list)
    wholes: Wholes = defaultdict(list)
    overheads: list[float] = []
    own = sorted({arm.length for arm in config.arm_list() if arm.length}) or [1]
    lengths = sorted({*own, *settings.draft_lengths})
    texts = MeasuredTexts.of(family, settings, max(lengths))
    if config.watches:
        capture_graphs(family, [Arm(name, max(lengths), min_margin=_SURE) for name in family.students], [config.sampling])
    capture_graphs(family, [*config.arm_list(), *(Arm(LOOKUP, length) for length in lengths)], [config.sampling])
    warm_up(family, ArmTable([Arm(NONE), Arm(LOOKUP, 2), *(Arm(name, max(lengths)) for name in family.students)]), [config.sampling])
    rng = np.random.default_rng(settings.seed)
    stretches = _stretches(rng, family, texts.edges[-1])
    for session in texts.sessions(family, config.sampling, settings.seed + 1):
        while session.room >= max(lengths) + 1 and len(overheads) < settings.rounds:
            drafter, behind = next(stretches)
            if drafter in family.students:
                _leave_unread(session, family, drafter, max(q for q in _CATCH_UPS if q <= min(behind, len(session.tokens))))
            overheads += _stretch(session, drafter, (own, lengths), config.watches, rng, samples, wholes)
            progress(len(overheads))
        if len(overheads) >= settings.rounds:
            break
    part_wholes(wholes, samples)
    known = {name for (name, query), rows in samples.items() if query > 0 and rows}
    return Profile(
        device=family.device_name(),
        dtype=str(next(family.target.model.parameters()).dtype).removeprefix("torch."),
        models={name: latency(samples, name, texts) for name in (TARGET, *family.students, *({LOOKUP} & known))},
        after={name: latency(samples, _behind(name), texts) for name in family.students if _behind(name) in known},
        overhead_ms=float(np.median(overheads)),
        token_ms=_noise_ms_per_token(family, config),
        watch_ms=watch_ms(samples, tuple(family.students)),
        family=family_fingerprint(family),
        versions=environment(family.device_name()),
    )


def _stretches(rng: np.random.Generator, family: Family, longest: int) -> Iterator[tuple[str, int]]:
    """Say who drafts in a stretch and how many tokens it is behind at first (where the text is that long), all pairs equally often."""
    pairs = [(drafter, behind) for drafter in (NONE, LOOKUP, *family.students) for behind in _CATCH_UPS if behind <= longest]
    while True:
        for i in rng.permutation(len(pairs)):
            yield pairs[i]


def _stretch(
    session: DecodingSession,
    drafter: str,
    lengths: tuple[Sequence[int], Sequence[int]],
    watches: bool,
    rng: np.random.Generator,
    samples: Samples,
    wholes: Wholes,
) -> list[float]:
    """Do a stretch of rounds, or as many as there is room for; return what each cost besides its parts (ms).

    Args:
        session: A text.
        drafter: Who drafts.
        lengths: Draft lengths that will be predicted, and all that are measured.
        watches: Whether in some of the rounds students watch how clear their choices are.
        rng: Draws lengths, and which rounds those are.
        samples: Takes what was measured.
        wholes: The same of whole drafts.
    """
    overheads: list[float] = []
    student = session.family.students.get(drafter)
    while len(overheads) < STRETCH and session.room >= max(lengths[1]):
        # Half of the drafts are as long as those that will be predicted.
        length = 0 if drafter == NONE else int(rng.choice(lengths[0] if rng.random() < 0.5 else lengths[1]))
        watched = watches and student is not None and rng.random() < _WATCHED_ROUNDS
        if student is None or student.programs is None or watched:
            overheads.append(_round(session, drafter, length, samples, watched))
        else:
            # The first catches up on more than any other, so a longer draft could be compared with none.
            single = not overheads or rng.random() < _SINGLE
            overheads.append(_whole_round(session, drafter, 1 if single else length, samples, wholes))
    return overheads


def _behind(student: str) -> str:
    """Return the name under which verifications of a student's drafts are sampled."""
    return f"{TARGET} behind {student}"


def _round(session: DecodingSession, drafter: str, length: int, samples: Samples, watched: bool) -> float:
    """Do one round, sort in the times of its parts and return what it cost besides (ms)."""
    context = len(session.tokens)
    query = 1 if drafter in (LOOKUP, NONE) else context - session.family.students[drafter].length
    began = perf_counter()
    session.observation()
    times: list[float] = []
    limits = Arm(drafter, length, min_margin=_SURE) if watched else None
    for _ in range(length):
        started = perf_counter()
        if session.draft(drafter, limits) is None:
            break
        times.append(1000 * (perf_counter() - started))
    record = session.verify()
    total = 1000 * (perf_counter() - began)
    if times and not watched:
        samples[drafter, query].append((context, times[0]))
    if len(times) > 1:
        # One entry a round, lest long drafts, whose weights are all at hand, outvote short ones.
        samples[drafter, WATCHED if watched else NEXT].append((context + len(times) // 2, sum(times[1:]) / (len(times) - 1)))
    _sort_in_verification(session, drafter, context, record, samples)
    return total - sum(times) - record.verify_ms


def _whole_round(session: DecodingSession, student: str, length: int, samples: Samples, wholes: Wholes) -> float:
    """Do a round in which all of a draft is one graph, which cannot be timed token by token; return what it cost besides (ms)."""
    context = len(session.tokens)
    query = context - session.family.students[student].length
    began = perf_counter()
    session.observation()
    record = session.step(Arm(student, length))
    total = 1000 * (perf_counter() - began)
    if len(record.drafted) == 1:
        samples[student, query].append((context, record.draft_ms))
    elif record.drafted:
        wholes[student].append((query, context, len(record.drafted), record.draft_ms))
    _sort_in_verification(session, student, context, record, samples)
    return total - record.draft_ms - record.verify_ms


def _sort_in_verification(session: DecodingSession, drafter: str, context: int, record: Round, samples: Samples) -> None:
    verified = (context + len(record.drafted), record.verify_ms)
    queries = len(record.drafted) + 1
    if drafter in session.family.students:
        samples[_behind(drafter), queries].append(verified)
    # Prompt lookup drafts little and displaces nothing; behind the cheapest student it is much the same.
    if drafter in (LOOKUP, NONE, next(iter(session.family.students), None)):
        samples[TARGET, queries].append(verified)


def _leave_unread(session: DecodingSession, family: Family, student: str, tokens: int) -> None:
    """Let ``student`` be behind by exactly so many tokens, at least two, and the target have been the last to run."""
    model, read = family.students[student], len(session.tokens) + 1 - tokens
    model.roll_back(read)
    if model.length < read:
        model.forward(torch.tensor(session.tokens[model.length : read], device=family.device), rows=1)
    session.step(Arm(NONE))


def _noise_ms_per_token(family: Family, config: DecodingConfig) -> float:
    """Return the cost of making the noise of one position; it is made for many at once, so that few rounds pay for it.

    Kernels make it where they use it, so it is part of what they take.
    """
    if config.sampling.greedy or operations(family.device).compiled:
        return 0.0
    times = []
    for seed in range(9):
        sampler = Sampler(replace(config.sampling, seed=seed), family.vocab, family.device)
        family.synchronise()
        began = perf_counter()
        made = sampler.prepare(0)
        family.synchronise()
        times.append(1000 * (perf_counter() - began) / made)
    return float(np.median(times))
