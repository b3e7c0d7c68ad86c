"""The draft of a round: students and prompt lookup add tokens to it until the target judges them."""

from time import perf_counter

import torch

from dispatch_rl.decoding.arms import LOOKUP, Arm
from dispatch_rl.decoding.drafts import DraftToken, Gap
from dispatch_rl.decoding.families import Family
from dispatch_rl.decoding.judging import ROOM_FOR_HEDGES
from dispatch_rl.decoding.lookup import LookupIndex
from dispatch_rl.decoding.models import CachedModel
from dispatch_rl.decoding.sampler import Sampler


class Draft:
    """What was drafted behind a text since it last grew.

    Args:
        family: Its students draft.
        sampler: Chooses their tokens.
        text: Token ids, prompt included; whoever lets it grow drops the draft.
        limit: Length of the text at which it ends (tokens).
    """

    def __init__(self, family: Family, sampler: Sampler, text: list[int], limit: int) -> None:
        self.tokens: list[DraftToken] = []
        self.took_ms = 0.0
        """Time of the students' forward passes, catch-up included, as far as the host has waited for them."""
        self._running: list[tuple[torch.cuda.Event, torch.cuda.Event, float]] = []
        """Beginning and end of what the device was given to draft, and the time (ms) that the host took to say so."""
        self.draw = 0
        """Number of the round."""
        self.lookup = LookupIndex()
        """Of the text."""
        self._family, self._sampler, self._text, self._limit = family, sampler, text, limit
        self._unready: dict[str, Exception] = {}
        """Students that could not begin this text, and why."""

    @property
    def room(self) -> int:
        """How many tokens may still be drafted: one less than may be emitted."""
        return self._limit - len(self._text) - 1 - len(self.tokens)

    @property
    def later_ms(self) -> float:
        """Time of forward passes that the host has not waited for, known once the draft is judged."""
        return sum((max(0.0, float(began.elapsed_time(ended)) - took) for began, ended, took in self._running), 0.0)

    def start_students(self) -> None:
        """Empty the students' caches for this text, which they read when they are chosen."""
        self._unready = {}
        for name, student in self._family.students.items():
            try:
                student.start(self._limit + ROOM_FOR_HEDGES)
            except Exception as error:  # out of memory, say: raised where it is to draft, and the target needs no student
                self._unready[name] = error

    def next_round(self) -> None:
        """Begin another draft, behind a text that has grown."""
        self.tokens, self.took_ms, self._running = [], 0.0, []
        self.draw += 1

    def add(self, student: str, arm: Arm | None = None, clarity: bool = False) -> DraftToken | None:
        """Let ``student`` draft one more token, and return it; see :meth:`DecodingSession.draft`."""
        began = perf_counter()
        token = self._by_lookup() if student == LOOKUP else self._by_model(student, arm, clarity)
        if token is not None:
            self.tokens.append(token)
        if student != LOOKUP:
            self._family.synchronise()
        self.took_ms += 1000 * (perf_counter() - began)
        return token

    def add_all(self, arm: Arm) -> None:
        """Draft what ``arm`` says.

        Raises:
            FloatingPointError: The student's logits are not numbers. Rejection sampling would let them into the text.
        """
        steps = min(arm.length, self.room)
        if not arm.watches and self._add_at_once(arm.student, steps):
            return
        limited, confidence, least = arm if arm.watches else None, 1.0, arm.min_confidence or 0.0
        for _ in range(steps):
            token = self.add(arm.student, limited)
            if token is None or (limited and token.id in self._family.eos_token_ids):
                break
            confidence *= token.chance
            if confidence < least:
                break
        self._sampler.check(self.tokens)

    def roll_back(self, stands: int) -> None:
        """Drop from the students' caches what lies behind ``stands`` tokens of the sequence, whoever read it."""
        for student in self._family.students.values():
            student.roll_back(stands)

    def _add_at_once(self, student: str, steps: int) -> bool:
        """Draft ``steps`` tokens without the host waiting for any of them; return whether that can be done."""
        model = self._family.students.get(student)
        if model is None or model.programs is None or student in self._unready:
            return False
        steps = min(steps, model.context_limit + 1 - len(self._text) - len(self.tokens))
        began, mark = perf_counter(), self._family.mark()
        drafted = self._sampler.run(student, model, self._gap(model), steps) if steps > 0 else None
        if drafted is None:
            return False
        self.tokens += drafted
        took_ms = 1000 * (perf_counter() - began)
        self.took_ms += took_ms
        if mark is not None and (ended := self._family.mark()) is not None:
            self._running.append((mark, ended, took_ms))
        return True

    def _by_model(self, student: str, arm: Arm | None, clarity: bool) -> DraftToken | None:
        model = self._family.students[student]
        if student in self._unready:
            raise self._unready[student]
        if len(self._text) + len(self.tokens) > model.context_limit:
            return None
        return self._sampler.next(student, model, self._gap(model), arm, clarity)

    def _gap(self, model: CachedModel) -> Gap:
        """Return what a student has not read before the next draft token."""
        read, written, slot = model.length, len(self._text), len(self.tokens)
        drafted = [d.token for d in self.tokens[max(0, read - written) :]]
        return Gap(self._text[read:], drafted, written + slot, self.draw, slot)

    def _by_lookup(self) -> DraftToken | None:
        _, proposed = self.lookup.find([d.id for d in self.tokens])
        if proposed is None:
            return None
        # From memory that is not pinned: the copy has left it when this returns, and nobody waits for the device.
        token = torch.tensor([proposed]).to(self._family.device, non_blocking=True)
        return DraftToken(LOOKUP, token, self._sampler.one_hot(token), known=proposed)
