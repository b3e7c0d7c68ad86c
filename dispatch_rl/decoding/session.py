"""Decoding one text: draft a token, draft another, verify, commit."""

from collections.abc import Callable, Sequence
from numbers import Integral
from time import perf_counter
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from dispatch_rl.decoding.arms import NONE, Arm
from dispatch_rl.decoding.device_sampling import make_sampler
from dispatch_rl.decoding.drafting import Draft
from dispatch_rl.decoding.drafts import DraftToken
from dispatch_rl.decoding.families import Family
from dispatch_rl.decoding.features import FeatureTracker
from dispatch_rl.decoding.judging import ROOM_FOR_HEDGES, judge
from dispatch_rl.decoding.rounds import Round, arm_name
from dispatch_rl.decoding.sampling import Sampling
from dispatch_rl.errors import UserError


class DecodingSession:
    """The decoding of one prompt.

    The constructor reads the prompt and emits the first token. A round is then any number of :meth:`draft` calls and one :meth:`verify`;
    :meth:`step` does a whole round for an arm that was chosen in advance. A family's caches hold one text: a session that goes on after
    another one, or after it was cut off in the middle of a pass, reads its own text again, before the clock of its round starts.

    Raises:
        UserError: The prompt is empty or leaves no room in the context, or ``max_new_tokens`` is below 1.
    """

    def __init__(self, family: Family, prompt: Sequence[int], sampling: Sampling, max_new_tokens: int) -> None:
        self.family = family
        self.limit = _text_limit(family, prompt, max_new_tokens)
        self.prompt_length = len(prompt)
        self.rounds: list[Round] = []
        self.finish_reason: Literal["stop", "length"] | None = None
        self.tokens = list(prompt)
        """Token ids of prompt and text."""
        self._sampler = make_sampler(sampling, family.vocab, family.device)
        self._tracker = FeatureTracker(tuple(family.students))
        self._draft = Draft(family, self._sampler, self.tokens, self.limit)
        self._round_began: float | None = None
        self._paused: float | None = None
        began = perf_counter()
        self._prefill()
        self.prefill_ms = 1000 * (perf_counter() - began)
        """Time to the first token."""

    @property
    def finished(self) -> bool:
        """Whether the text has ended."""
        return self.finish_reason is not None

    @property
    def text_tokens(self) -> list[int]:
        """The emitted tokens."""
        return self.tokens[self.prompt_length :]

    @property
    def room(self) -> int:
        """How many tokens may still be drafted in this round: one less than may be emitted."""
        return self._draft.room

    @property
    def drafted(self) -> tuple[DraftToken, ...]:
        """The draft so far."""
        return tuple(self._draft.tokens)

    @property
    def draft_ms(self) -> float:
        """Time that the draft has taken so far."""
        return self._draft.took_ms

    def observation(self) -> NDArray[np.float32]:
        """Return the features before the next round ``[features]``."""
        match, _ = self._draft.lookup.find([])
        written = len(self.tokens)
        lags = [written - 1 - read for read in self.read()]
        position = (written - self.prompt_length) / (self.limit - self.prompt_length)
        return self._tracker.observation(match, position, lags)

    def read(self) -> list[int]:
        """Return how much of this text, with its draft, each student has read (tokens): nothing, if the caches hold another one."""
        held = self.family.target.reader is self
        return [student.length if held else 0 for student in self.family.students.values()]

    def step(self, arm: Arm, on_failure: Callable[[Exception], None] | None = None) -> Round:
        """Do one round with ``arm``; the draft ends early where the text must end.

        Args:
            arm: Who drafts, and how far.
            on_failure: Told what went wrong in a student; the draft is then dropped and the round is the target's alone, unless that is
                known only once the draft has been judged. None raises it.
        """
        self._begin_round()
        try:
            self._draft.add_all(arm)
        except BaseException as error:
            if on_failure is None or not isinstance(error, Exception):
                self._abandon()
                raise
            self._draft.tokens = []
            on_failure(error)
            arm = Arm(NONE)
        record = self.verify(arm.name)
        try:
            self._sampler.check_run()
        except FloatingPointError as error:
            if on_failure is None:
                raise
            on_failure(error)
        return record

    def draft(self, student: str, arm: Arm | None = None, clarity: bool = False) -> DraftToken | None:
        """Let ``student`` draft the next token; its catch-up is part of the same forward pass.

        Args:
            student: Who drafts.
            arm: Its limits apply.
            clarity: Whether the token is to tell how sure the student is of it.

        Returns:
            The draft token, or None where prompt lookup has nothing to propose, the student's context is full, or it hesitates.
        """
        self._begin_round()
        if self.room < 1:
            raise ValueError("the text has no room for another draft token")
        try:
            return self._draft.add(student, arm, clarity)
        except BaseException:
            self._abandon()
            raise

    def pause(self) -> None:
        """Stop the clock of the round until :meth:`draft` or :meth:`verify` is called: what happens meanwhile is not decoding."""
        if self._round_began is not None:
            self._paused = perf_counter()

    def verify(self, arm: str | None = None) -> Round:
        """Let the target judge the draft, commit what stands, and return the record of the round."""
        self._begin_round()
        try:
            return self._judged(arm)
        except BaseException:
            self._abandon()
            raise

    def _judged(self, arm: str | None) -> Round:
        began = perf_counter()
        verdict = judge(self.family, self._sampler, self.tokens[-1], self._draft.tokens, len(self.tokens), self._draft.draw)
        entropies = verdict.statistics.entropy_nats.tolist()
        later_ms = self._draft.later_ms
        draft_ms, verify_ms = self._draft.took_ms + later_ms, 1000 * (perf_counter() - began) - later_ms

        students = tuple(d.student for d in self._draft.tokens)
        self._commit(verdict.emitted, verdict.accepted, verdict.hedge_row)
        assert self._round_began is not None
        total_ms = 1000 * (perf_counter() - self._round_began)
        record = Round(
            arm=arm or arm_name(students),
            students=students,
            drafted=tuple(verdict.drafted),
            num_accepted=min(verdict.accepted, len(verdict.emitted)),
            emitted=tuple(verdict.emitted),
            entropies_nats=tuple(entropies),
            draft_ms=draft_ms,
            verify_ms=verify_ms,
            overhead_ms=total_ms - draft_ms - verify_ms,
            num_hedges=verdict.hedges,
            hedge_stood=verdict.hedge_row is not None,
        )
        self._tracker.update(record, float(verdict.statistics.top1_probability[-1]), float(verdict.statistics.margin[-1]))
        self.rounds.append(record)
        self._draft.next_round()
        self._round_began = None
        return record

    def _begin_round(self) -> None:
        if self.finished:
            raise ValueError("the text has ended; begin a new session")
        left = perf_counter() if self._paused is None else self._paused
        if self.family.target.reader is not self:
            self._claim_caches()
            self.family.target.forward(torch.tensor(self.tokens[:-1], device=self.family.device), rows=1)
            self.family.synchronise()
            self.family.target.reader = self
        elif self._paused is None and self._round_began is not None:
            return
        now = perf_counter()
        self._round_began = now if self._round_began is None else self._round_began + now - left
        self._paused = None

    def _abandon(self) -> None:
        """Drop the round, which was cut off, and what it may have left in the caches."""
        self.family.target.reader = None
        self._draft.next_round()
        self._round_began = self._paused = None

    def _claim_caches(self) -> None:
        """Empty the family's caches; whoever does so is their reader once the target has read its text, students when they are chosen."""
        self.family.target.reader = None
        self.family.target.start(self.limit + ROOM_FOR_HEDGES)
        self._draft.start_students()

    def _prefill(self) -> None:
        """Read the prompt with the target only; a student that is never chosen never reads it."""
        self._claim_caches()
        prompt = self.tokens
        logits = self.family.target.forward(torch.tensor(prompt, device=self.family.device), rows=1)
        _, first = self._sampler.verify(logits, self.family.no_tokens, None, len(prompt), 0)
        seen = self._sampler.statistics(logits, 1)
        self._draft.lookup.extend(prompt)
        self._tracker.start(float(seen.entropy_nats[0]), float(seen.top1_probability[0]), float(seen.margin[0]))
        self._commit([first], 0)
        self.family.target.reader = self

    def _commit(self, emitted: list[int], accepted: int, hedge_row: int | None = None) -> None:
        """Append ``emitted`` and drop from every cache what did not stand; ``hedge_row`` says where a second choice that did was read."""
        stands = len(self.tokens) + accepted
        if hedge_row is None:
            self.family.target.roll_back(stands)
        else:
            self.family.target.adopt(len(self.tokens) - 1 + hedge_row, stands)
        self._draft.roll_back(stands)
        self.tokens += emitted
        self._draft.lookup.extend(emitted)
        if self.tokens[-1] in self.family.eos_token_ids:
            self.finish_reason = "stop"
        elif len(self.tokens) >= self.limit:
            self.finish_reason = "length"


def _text_limit(family: Family, prompt: Sequence[int], max_new_tokens: int) -> int:
    """Return the number of tokens, prompt included, at which the text ends."""
    if not prompt:
        raise UserError("prompt: it is empty; give at least one token")
    if len(prompt) >= family.context_limit:
        raise UserError(f"prompt: {len(prompt)} tokens leave no room in a context of {family.context_limit}")
    if not isinstance(max_new_tokens, Integral) or max_new_tokens < 1:
        raise UserError(f"max_new_tokens: {max_new_tokens!r} is not an integer of at least 1")
    return min(family.context_limit, len(prompt) + max_new_tokens)
