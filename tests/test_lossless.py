"""The first promise: whatever is dispatched, the text is the target's own."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from random import Random

import pytest
import torch

from dispatch_rl.config import PromptConfig
from dispatch_rl.decoding.arms import LOOKUP, NONE, Arm
from dispatch_rl.decoding.drafts import DraftToken
from dispatch_rl.decoding.families import Family
from dispatch_rl.decoding.sampling import Sampling
from dispatch_rl.decoding.session import DecodingSession
from dispatch_rl.kernels.noise import gumbel
from dispatch_rl.kernels.verify import shape, verify_exact
from dispatch_rl.prompts import prompts

Stepper = Callable[[DecodingSession], object]


def own_text(family: Family, prompt: Sequence[int], text: Sequence[int], sampling: Sampling) -> list[int]:
    """Return what the target alone chooses at every position of ``text``: one pass without our cache, loop or verification.

    If it equals ``text``, then by induction over the positions ``text`` is what the target alone would have written.
    """
    tokens = torch.tensor([[*prompt, *text]], device=family.device)
    with torch.inference_mode():
        logits = family.target.model(tokens, use_cache=False).logits[0, len(prompt) - 1 : -1, : family.vocab].cpu()
    if sampling.greedy:
        return [int(token) for token in logits.argmax(-1)]
    positions = torch.arange(len(prompt), len(prompt) + len(text))
    scores = shape(logits, sampling.temperature, sampling.top_k, sampling.top_p) + gumbel(sampling.seed, positions, family.vocab)
    return [int(token) for token in scores.argmax(-1)]


def random_sampling(rng: Random) -> Sampling:
    """Return greedy decoding one time in four, else any mixture of temperature, top-k and top-p."""
    if rng.random() < 0.25:
        return Sampling()
    top_k, top_p = rng.choice([None, 1, 5, 50]), rng.choice([None, 0.5, 0.95, 1.0])
    return Sampling(rng.choice([0.3, 0.6, 1.0, 1.7]), top_k, top_p, seed=rng.randrange(2**64))


def any_arm(family: Family, rng: Random) -> Arm:
    """Return a random arm, absurdly long drafts included, and every second one of a student with limits."""
    student = rng.choice([*family.students, LOOKUP, NONE])
    arm = Arm(student, 0 if student == NONE else rng.choice([1, 2, 3, 5, 8, 24, 60]))
    if student in (LOOKUP, NONE) or rng.random() < 0.5:
        return arm
    margin, entropy, hedge = (rng.choice([None, small, large]) for small, large in ((0.1, 1.0), (0.5, 2.0), (2.0, 50.0)))
    return replace(arm, min_margin=margin, max_entropy=entropy, hedge_below=hedge, min_confidence=rng.choice([None, 0.3, 0.9]))


def steppers(family: Family, rng: Random) -> Stepper:
    """Return a policy without sense: one arm for ever, a new one each round, or a new student at every draft token."""
    fixed = any_arm(family, rng)

    def by_token(draft: tuple[DraftToken, ...]) -> str | None:
        return rng.choice([*family.students, LOOKUP]) if rng.random() < 0.8 else None

    choices: list[Stepper] = [
        lambda session: session.step(fixed),
        lambda session: session.step(any_arm(family, rng)),
        lambda session: step_by_token(session, by_token),
    ]
    return rng.choice(choices)


def step_by_token(session: DecodingSession, policy: Callable[[tuple[DraftToken, ...]], str | None]) -> None:
    """Do one round in which ``policy`` is asked before every draft token who drafts it, None to verify."""
    while session.room > 0 and (student := policy(session.drafted)) is not None:
        if session.draft(student) is None:
            break
    session.verify()


def decode(family: Family, prompt: Sequence[int], sampling: Sampling, max_new_tokens: int, step: Stepper) -> DecodingSession:
    """Decode to the end."""
    session = DecodingSession(family, prompt, sampling, max_new_tokens)
    while not session.finished:
        step(session)
    return session


def test_two_hundred_random_texts_are_the_targets_own(pocket: Family) -> None:
    """Greedy and coupled text is token for token the target's, for random prompts, seeds, temperatures and policies."""
    rng = Random(0)
    stream = prompts(PromptConfig(), pocket, "test", seed=0)
    for prompt in islice(stream, 200):
        sampling = random_sampling(rng)
        session = decode(pocket, prompt.tokens, sampling, rng.randint(1, 72), steppers(pocket, rng))
        assert session.text_tokens == own_text(pocket, prompt.tokens, session.text_tokens, sampling), (prompt, sampling)


def test_unequal_vocabularies_architectures_and_contexts_are_lossless(other: Family) -> None:
    """A Llama target with Qwen2 and Llama students, vocabularies 384, 328 and 384, contexts 128 and 96."""
    assert other.vocab == 328
    rng = Random(1)
    for _ in range(60):
        prompt = [rng.randrange(1, other.vocab) for _ in range(rng.randint(1, 110))]
        sampling = random_sampling(rng)
        session = decode(other, prompt, sampling, 128, steppers(other, rng))
        assert session.text_tokens == own_text(other, prompt, session.text_tokens, sampling)


def test_a_perfect_student_is_always_accepted(other: Family) -> None:
    """The student that equals the target loses no draft token, so every full round emits its length and one."""
    for sampling in (Sampling(), Sampling(0.8, seed=3), Sampling(0.8, seed=3, method="rejection")):
        session = decode(other, [5, 6, 7], sampling, 80, lambda s: s.step(Arm("twin", 4)))
        assert all(record.num_accepted == min(len(record.drafted), len(record.emitted)) for record in session.rounds)


@pytest.mark.parametrize("method", ["coupled", "rejection"])
def test_text_ends_exactly(pocket: Family, method: str) -> None:
    """Every length limit is met to the token, and nothing follows an end-of-sequence token."""
    rng = Random(2)
    stream = prompts(PromptConfig(kinds=["reasoning"]), pocket, "test", seed=1)
    reasons = set()
    for limit, prompt in zip([1, 2, 3, 7, 300, 300, 300], stream, strict=False):
        sampling = Sampling(0.6, seed=rng.randrange(1000), method=method)  # type: ignore[arg-type]
        session = decode(pocket, prompt.tokens, sampling, limit, lambda s: s.step(any_arm(pocket, rng)))
        ends = [i for i, token in enumerate(session.text_tokens) if token in pocket.eos_token_ids]
        if session.finish_reason == "stop":
            assert ends == [len(session.text_tokens) - 1]
        else:
            assert (ends, len(session.text_tokens)) == ([], limit)
        reasons.add(session.finish_reason)
    assert reasons == {"stop", "length"}


def test_the_context_limit_is_exact(other: Family) -> None:
    """Text and prompt together fill the target's context of 128 to the last token; a student whose context is 96 stops drafting."""
    endless = Sampling(1.0, seed=11)
    session = decode(other, list(range(1, 90)), endless, 500, lambda s: s.step(Arm("twin", 6)))
    if session.finish_reason == "length":
        assert len(session.tokens) == other.context_limit == 128
    assert all(not record.drafted for record in session.rounds[-3:])


def test_losslessness_can_fail(pocket: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """Accepting one token too many makes the comparison red."""
    from dispatch_rl.decoding import sampler

    def generous(scores: torch.Tensor, drafted: torch.Tensor) -> tuple[int, int]:
        accepted, following = verify_exact(scores, drafted)
        return min(accepted + 1, len(drafted)), following

    monkeypatch.setattr(sampler, "verify_exact", generous)
    prompt = next(prompts(PromptConfig(), pocket, "test", seed=8)).tokens
    session = decode(pocket, prompt, Sampling(1.0, seed=1), 60, lambda s: s.step(Arm("small", 6)))
    assert session.text_tokens != own_text(pocket, prompt, session.text_tokens, Sampling(1.0, seed=1))


def test_a_second_choice_stands_in_place_of_a_wrong_first(pocket: Family) -> None:
    """Rounds in which one did emit one token more than was accepted and the target's own; the cache goes on as if it had been the first."""
    rng, stood = Random(5), 0
    for prompt in islice(prompts(PromptConfig(), pocket, "test", seed=4), 12):
        sampling = Sampling(rng.choice([0.0, 0.6]), seed=rng.randrange(2**32))
        session = decode(pocket, prompt.tokens, sampling, 60, lambda s: s.step(Arm("small", 4, hedge_below=50.0)))
        assert session.text_tokens == own_text(pocket, prompt.tokens, session.text_tokens, sampling)
        for record in session.rounds:
            assert record.num_hedges == len(record.drafted)
            assert len(record.emitted) <= record.num_accepted + 1 + record.hedge_stood
            stood += record.hedge_stood
    assert stood > 20


def test_rejection_sampling_has_no_second_choices(other: Family) -> None:
    """They would change the distribution."""
    session = decode(other, [5, 6, 7], Sampling(0.8, seed=3, method="rejection"), 60, lambda s: s.step(Arm("tiny", 4, hedge_below=50.0)))
    assert sum(record.num_hedges for record in session.rounds) == 0
