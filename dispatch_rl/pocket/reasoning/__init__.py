"""Endless reasoning problems with worked solutions, from a seed.

Nothing here is read from a file: :func:`problems` draws kinds, levels and numbers at random. A problem is *held out* if the
checksum of its prompt says so, so training and held-out problems never share a prompt, whatever the seed.
"""

from collections.abc import Callable, Iterator
from random import Random
from zlib import crc32

from dispatch_rl.pocket.reasoning import arithmetic, stories, structures
from dispatch_rl.pocket.reasoning.base import Problem, stated_answer, worded

__all__ = ["KINDS", "LEVELS", "Problem", "is_held_out", "make_problem", "problems", "stated_answer"]

KINDS: dict[str, Callable[[Random, int], tuple[str, list[str], str]]] = {
    "addition": arithmetic.addition,
    "subtraction": arithmetic.subtraction,
    "multiplication": arithmetic.multiplication,
    "remainder": arithmetic.remainder,
    "equation": arithmetic.equation,
    "word_problem": stories.word_problem,
    "weekday": stories.weekday,
    "date": stories.date,
    "sorting": structures.sorting,
    "list_edits": structures.list_edits,
    "brackets": structures.brackets,
    "program": structures.program,
    "truth_table": structures.truth_table,
}
LEVELS = (1, 2, 3, 4, 5)
_HELD_OUT_ONE_IN = 16


def make_problem(rng: Random, kind: str, level: int) -> Problem:
    """Draw one problem of ``kind`` (a key of :data:`KINDS`) and ``level`` (1 to 5)."""
    question, steps, answer = KINDS[kind](rng, level)
    return Problem(kind, level, question, worded(rng, steps), answer)


def is_held_out(problem: Problem) -> bool:
    """Whether ``problem`` belongs to the sixteenth of all prompts that training never sees."""
    return crc32(problem.prompt.encode()) % _HELD_OUT_ONE_IN == 0


def problems(seed: int, *, held_out: bool) -> Iterator[Problem]:
    """Yield problems without end, kinds and levels uniform, from one side of the split."""
    rng = Random(seed)
    while True:
        problem = make_problem(rng, rng.choice(list(KINDS)), rng.choice(LEVELS))
        if is_held_out(problem) == held_out:
            yield problem
