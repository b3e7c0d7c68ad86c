"""One text while it is written: rounds, characters, the reason why it ends, and what it took."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Literal

import torch

from dispatch_rl.decoding.arms import ArmTable
from dispatch_rl.decoding.families import Family
from dispatch_rl.decoding.loop import Dispatch
from dispatch_rl.decoding.rounds import Round, RoundTable, metrics
from dispatch_rl.decoding.sampling import Sampling
from dispatch_rl.decoding.session import DecodingSession
from dispatch_rl.errors import UserError
from dispatch_rl.policies.base import Policy
from dispatch_rl.runtime.text import Detokenizer, StopStrings


@dataclass(frozen=True)
class Generated:
    """A text and what it took."""

    text: str
    """Without special tokens, and without the stop string that ended it."""
    tokens: tuple[int, ...]
    """All tokens, the end-of-sequence token or those of the stop string included."""
    finish_reason: Literal["stop", "length"]
    """stop: an end-of-sequence token or a stop string; length: the limit, the end of the context, or a stopping criterion."""
    metrics: Mapping[str, Any]
    """vLLM's speculation metrics over the rounds; times in milliseconds; the part of the rounds' time that was spent on decisions."""
    failure: str | None = None
    """What went wrong in the dispatcher, so that the target wrote the rest alone."""


@dataclass(frozen=True)
class Token:
    """One token of a text that is being written."""

    id: int
    text: str
    """The characters that are complete with it; empty within a character, or while a stop string may have begun."""
    student: str | None
    """Who drafted it; None if it is the target's own."""
    round: Round | None
    """The round it comes from; None for the first token, which the reading of the prompt gives."""


class Writer:
    """Writes one text.

    Args:
        family: The models.
        policy: Chooses an arm before every round.
        arms: What it chooses from.
        prompt: Token ids.
        sampling: How tokens are chosen.
        max_new_tokens: Tokens to emit at most.
        stop: Strings before which the text ends.

    Raises:
        UserError: The prompt is empty, too long or of unknown tokens, a limit is below one, or a stop string is empty.
    """

    def __init__(
        self,
        family: Family,
        policy: Policy,
        arms: ArmTable,
        prompt: Sequence[int],
        sampling: Sampling,
        max_new_tokens: int,
        stop: Sequence[str] = (),
    ) -> None:
        if unknown := [token for token in prompt if not 0 <= token < family.vocab]:
            raise UserError(f"prompt: token {unknown[0]} is not in 0 ... {family.vocab - 1}")
        self._stop = StopStrings(stop)
        self._detokenizer = Detokenizer(family.tokenizer, prompt)
        with _turn(family):
            self.session = DecodingSession(family, prompt, sampling, max_new_tokens)
            self.dispatch = Dispatch(self.session, policy, arms)
        self._family = family
        self._tokens = self.session.text_tokens
        self._pieces: list[str] = []
        self._decoding_ms = 0.0

    def step(self) -> Round:
        """Do one round."""
        with _turn(self._family):
            began = perf_counter()
            record = self.dispatch.step()
            self._family.synchronise()
            self._decoding_ms += 1000 * (perf_counter() - began)
        return record

    def write(self) -> "Generated":
        """Write to the end, with no thought for characters before it."""
        while not self.session.finished:
            self.step()
        self._tokens = self.session.text_tokens
        self._pieces = [self._detokenizer.push(self._tokens), self._detokenizer.finish()]
        return self.generated()

    def stream(self) -> Iterator[Token]:
        """Yield the tokens as rounds complete."""
        first, self._tokens = self._tokens, []
        yield from self._taken(first, None)
        while not (self.session.finished or self._stop.found):
            record = self.step()
            yield from self._taken(record.emitted, record)

    def _taken(self, ids: Sequence[int | None], record: Round | None) -> Iterator[Token]:
        for i, token in enumerate(ids):
            assert token is not None
            self._tokens.append(token)
            text = self._stop.push(self._detokenizer.push([token]))
            if self.session.finished and i == len(ids) - 1 and not self._stop.found:
                text += self._stop.push(self._detokenizer.finish()) + self._stop.finish()
            self._pieces.append(text)
            drafted = record is not None and i < record.num_accepted
            yield Token(token, text, record.students[i] if drafted and record else None, record)
            if self._stop.found:
                return

    def generated(self) -> Generated:
        """Return the text as far as it is written."""
        return Generated(
            text="".join(self._pieces),
            tokens=tuple(self._tokens),
            finish_reason="stop" if self._stop.found else self.session.finish_reason or "length",
            metrics=self._metrics(),
            failure=self.dispatch.failure,
        )

    def _metrics(self) -> dict[str, Any]:
        rounds, decision_ms = self.session.rounds, self.dispatch.decision_ms
        found = metrics(RoundTable.of([(rounds, self.dispatch.entropies_nats)]))
        emitted = found["num_emitted_tokens"]
        return {
            **found,
            "mean_acceptance_length": found["mean_acceptance_length"] if rounds else None,
            "time_to_first_token_ms": self.session.prefill_ms,
            "latency_ms_per_token": self._decoding_ms / emitted if rounds else None,
            "tokens_per_second": 1000 * emitted / self._decoding_ms if rounds else None,
            "decision_overhead": decision_ms / self._decoding_ms if rounds else None,
        }


@contextmanager
def _turn(family: Family) -> Iterator[None]:
    """Have the family's models to oneself: texts of several threads take turns by round.

    Raises:
        UserError: torch.autocast would change the types of what the models compute.
    """
    if torch.is_autocast_enabled(family.device.type):
        raise UserError("autocast: the models run in their own type; leave torch.autocast for the time of writing")
    with family.target.lock:
        yield
