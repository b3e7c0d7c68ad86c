"""What a reasoning problem is, and how one is worded."""

from dataclasses import dataclass
from random import Random

OPENERS = (
    "Okay, let me work this out step by step.",
    "Let me think about this carefully.",
    "First, I look at what is asked.",
    "Alright, one step at a time.",
)
CLOSERS = (
    "That settles it.",
    "So that is the answer.",
    "Everything is done, so I can answer.",
)


@dataclass(frozen=True)
class Problem:
    """A question with its worked solution.

    ``level`` grades the difficulty from 1 (one or two steps) to 5.
    """

    kind: str
    level: int
    question: str
    steps: tuple[str, ...]
    answer: str

    @property
    def prompt(self) -> str:
        """What a model is given: the question and the start of the thinking."""
        return f"Problem: {self.question}\n<think>\n"

    @property
    def solution(self) -> str:
        """What a model should write after the prompt."""
        return "\n".join(self.steps) + f"\n</think>\nAnswer: {self.answer}\n"


def worded(rng: Random, steps: list[str]) -> tuple[str, ...]:
    """Return ``steps`` between an opening and, half of the time, a closing remark."""
    closing = [rng.choice(CLOSERS)] if rng.random() < 0.5 else []
    return (rng.choice(OPENERS), *steps, *closing)


def stated_answer(text: str) -> str | None:
    """Return what stands on the first ``Answer:`` line of ``text``; None if there is no such line."""
    for line in text.splitlines():
        if line.startswith("Answer:"):
            return line.removeprefix("Answer:").strip()
    return None
