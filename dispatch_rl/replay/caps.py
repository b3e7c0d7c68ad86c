"""Counts of accepted tokens that end where the recorder's drafts ended, not where the student was wrong."""

from collections.abc import Iterator, Sequence

from dispatch_rl.decoding.arms import Arm
from dispatch_rl.replay.traces import Traces


def doubts(traces: Traces, arms: Sequence[Arm]) -> Iterator[str]:
    """Yield a line for every student that has an arm longer than its counts, if these look as if they had been cut.

    A run of tokens that a student has right ends at one place: behind a position from which ``n`` are right, ``n - 1`` are. So the largest
    count never stands twice in a row, unless it is as far as the recorder's drafts went.
    """
    for student in traces.students:
        counts = traces.accepted[student]
        most = int(counts.max(initial=0))
        longer = [arm.name for arm in arms if arm.student == student and arm.length > most]
        if longer and most > 0 and ((counts[1:] == most) & (counts[:-1] == most)).any():
            yield (
                f"{traces.source}: at most {most} tokens of '{student}' are accepted, time and again, as if its drafts had been no longer; "
                f"if so, {', '.join(longer)} would be faster than it is counted: lower draft_length or the arms' own"
            )
