"""What a session promises besides the text: caches that roll back in place, lazy students, honest records."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from random import Random
from typing import Any

import pytest
import torch

from dispatch_rl.bench.decode import our_decoder
from dispatch_rl.bench.measuring import transformers_decoder
from dispatch_rl.config import FamilyConfig, PromptConfig
from dispatch_rl.decoding.arms import NONE, Arm
from dispatch_rl.decoding.cache import AnyCache, RollbackCache, StackedCache
from dispatch_rl.decoding.families import Family, load_family
from dispatch_rl.decoding.models import CachedModel
from dispatch_rl.decoding.rounds import Round
from dispatch_rl.decoding.sampling import Sampling
from dispatch_rl.decoding.session import DecodingSession
from dispatch_rl.errors import UserError
from dispatch_rl.kernels.entropy import entropy
from dispatch_rl.prompts import prompts
from tests.test_lossless import own_text, step_by_token

PROMPT = "Problem: Compute 48 + 29.\n<think>\n"


def begin(family: Family, max_new_tokens: int = 64, sampling: Sampling | None = None) -> DecodingSession:
    """Begin to decode a short prompt."""
    return DecodingSession(family, family.encode(PROMPT), sampling or Sampling(), max_new_tokens)


def finish(session: DecodingSession, arm: Arm) -> list[Round]:
    """Decode to the end with one arm."""
    while not session.finished:
        session.step(arm)
    return session.rounds


@pytest.mark.parametrize("student", ["small", "medium", "large"])
def test_same_tokens_as_transformers_assisted_generation(pocket: Family, student: str) -> None:
    """A fixed student at a fixed length, greedy: the tokens of ``generate(assistant_model=...)``."""
    ours, theirs = our_decoder(pocket, student, 5, 64), transformers_decoder(pocket, student, 5, 64)
    for prompt in islice(prompts(PromptConfig(), pocket, "test", seed=5), 4):
        assert ours(prompt.tokens) == theirs(prompt.tokens)


def test_a_student_that_is_never_chosen_never_reads(pocket: Family) -> None:
    """Prefill and catch-up happen when a student is chosen, not before."""
    session = begin(pocket)
    for _ in range(3):
        session.step(Arm("medium", 2))
    assert (pocket.students["small"].length, pocket.students["large"].length) == (0, 0)
    assert pocket.students["medium"].length > session.prompt_length


def test_catch_up_is_part_of_the_first_draft_forward(pocket: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three draft tokens are three forward passes of the student, however far it is behind."""
    session = begin(pocket)
    for _ in range(4):
        session.step(Arm(NONE))
    lengths: list[int] = []
    forward = CachedModel.forward

    def counted(self: CachedModel, tokens: torch.Tensor, rows: int | None = None, beside: Sequence[int] = ()) -> torch.Tensor:
        if self is pocket.students["small"]:
            lengths.append(len(tokens))
        return forward(self, tokens, rows, beside)

    monkeypatch.setattr(CachedModel, "forward", counted)
    behind = len(session.tokens)
    session.step(Arm("small", 3))
    assert lengths == [behind, 1, 1]


def test_caches_roll_back_in_place(pocket: Family) -> None:
    """The buffers of every layer stay where they are from the first round to the last, and hold just what stands."""
    session = begin(pocket, 64, Sampling(1.0, seed=5))

    def places() -> list[int]:
        return [address for model in pocket.models() for address in model.cache.addresses()]

    session.step(Arm("small", 4))
    before = places()
    while not session.finished:
        session.step(Arm("small", 4))
        assert pocket.target.length == len(session.tokens) - 1
        assert pocket.students["small"].length <= len(session.tokens) - 1
    assert places() == before


@pytest.mark.parametrize("cache", [RollbackCache(2), StackedCache(2, 1, 4, torch.empty(0))])
def test_cache_refuses_to_grow_by_rolling_back(cache: AnyCache) -> None:
    """A cache can only be rolled back to what it holds."""
    with pytest.raises(ValueError, match="cannot roll back from 0 to 3"):
        cache.length = 3


def test_stacked_cache_keeps_what_it_is_given() -> None:
    """What was written is found again, behind a roll-back, a move, and a choice of rows, which is a copy with more room."""
    given = torch.arange(2 * 3 * 4 * 5, dtype=torch.float32).view(2, 3, 4, 5, 1).expand(-1, -1, -1, -1, 8)
    cache = StackedCache(2, 2, 8, torch.empty(0))
    cache.reserve(5)
    for part, stays in ((given[:, :, :, :3], 3), (given[:, :, :, :1], 3), (given[:, :, :, 3:], 5)):
        for place, new in zip(cache.extend(3, part.shape[3]), part, strict=True):
            place.fresh.copy_(new)
        cache.length = stays
    cache.move(1, 0)
    copy = cache.chosen(torch.tensor([2, 0, 2]), 600)
    copy.select(torch.tensor([1, 2]))
    for layer, place in enumerate(copy.extend(2, 1)):
        expected = given[layer, [0, 2]][:, :, [1, 1, 2, 3, 4]]
        torch.testing.assert_close(torch.cat([place.keys, place.values], dim=1)[:, :, :5], expected, rtol=0, atol=0)
    with pytest.raises(IndexError, match="the cache holds 512 tokens, 517 are needed"):
        cache.extend(3, 512)


def test_a_cache_that_lost_its_tokens_says_so() -> None:
    """It does not go on with a new buffer, in whose memory anything may stand."""
    stacked, layered = StackedCache(1, 1, 4, torch.empty(0)), RollbackCache(1)
    for cache in (stacked, layered):
        cache.reserve(8)
    stacked.extend(1, 3)
    layered.update(torch.zeros(1, 1, 3, 4), torch.zeros(1, 1, 3, 4), 0)
    stacked._buffer, layered._rollback_layers[0].is_initialized = None, False
    with pytest.raises(RuntimeError, match="the cache has lost the 3 tokens that it held"):
        stacked.extend(1, 1)
    with pytest.raises(RuntimeError, match="the cache has lost the 3 tokens that it held"):
        layered.update(torch.zeros(1, 1, 1, 4), torch.zeros(1, 1, 1, 4), 0)


def test_records_add_up(pocket: Family) -> None:
    """A round emits the accepted tokens and one more, and its parts of time are its latency."""
    session = begin(pocket, 50, Sampling(0.8, seed=2))
    rounds = finish(session, Arm("small", 4))
    assert session.text_tokens[1:] == [token for record in rounds for token in record.emitted]
    for record in rounds[:-1]:
        assert len(record.emitted) == record.num_accepted + 1 == len(record.entropies_nats)
        assert record.drafted[: record.num_accepted] == record.emitted[:-1]
    for record in rounds:
        assert min(record.draft_ms, record.verify_ms, record.overhead_ms) >= 0
        assert record.latency_ms == record.draft_ms + record.verify_ms + record.overhead_ms


def test_entropies_are_the_targets_along_its_text(pocket: Family) -> None:
    """Every emitted token comes with the entropy of the distribution it was chosen from, before temperature."""
    session = begin(pocket, 40, Sampling(0.7, seed=9))
    rounds = finish(session, Arm("large", 6))
    with torch.inference_mode():
        logits = pocket.target.model(torch.tensor([session.tokens]), use_cache=False).logits[0]
    exact = entropy(logits.double()).entropy_nats[session.prompt_length : -1]
    seen = torch.tensor([value for record in rounds for value in record.entropies_nats])
    torch.testing.assert_close(seen, exact.float(), atol=1e-4, rtol=1e-4)


def test_token_policy_that_answers_in_advance_is_an_arm(pocket: Family) -> None:
    """Asking once per draft token and always hearing the same is the round-level arm."""
    rounds = finish(begin(pocket), Arm("medium", 3))
    by_token = begin(pocket)
    while not by_token.finished:
        step_by_token(by_token, lambda draft: "medium" if len(draft) < 3 else None)
    assert [(r.drafted, r.emitted) for r in by_token.rounds] == [(r.drafted, r.emitted) for r in rounds]


def test_lag_is_what_a_student_has_not_read(pocket: Family) -> None:
    """The lag feature counts the committed tokens beyond a student's cache, the last one apart."""
    session, rng = begin(pocket, 64, Sampling(1.0, seed=4)), Random(0)
    names = [feature.name for feature in session._tracker.table]
    while not session.finished:
        observation = dict(zip(names, session.observation().tolist(), strict=True))
        for name, student in pocket.students.items():
            assert observation[f"lag_{name}"] == min(256, len(session.tokens) - 1 - student.length)
        session.step(Arm(rng.choice(list(pocket.students)), 3))


@pytest.mark.parametrize(
    ("prompt", "max_new_tokens", "message"),
    [([], 5, "prompt: it is empty"), ([1] * 1024, 5, "prompt: 1024 tokens leave no room"), ([1], 0, "max_new_tokens: 0")],
)
def test_impossible_texts_are_refused(pocket: Family, prompt: list[int], max_new_tokens: int, message: str) -> None:
    """An empty prompt, one that fills the context, and a limit of zero are one line each."""
    with pytest.raises(UserError, match=message):
        DecodingSession(pocket, prompt, Sampling(), max_new_tokens)


def test_sessions_that_take_turns_do_not_disturb_each_other(pocket: Family) -> None:
    """A session that goes on after another one on the same family writes what it would have written alone."""

    def sessions() -> list[DecodingSession]:
        return [begin(pocket, 40, Sampling(0.8, seed=seed)) for seed in (1, 2)]

    alone = []
    for session in sessions():
        finish(session, Arm("small", 3))
        alone.append(session.text_tokens)
    first, second = sessions()
    while not (first.finished and second.finished):
        for session in (first, second):
            if not session.finished:
                session.step(Arm("small", 3))
    assert [first.text_tokens, second.text_tokens] == alone


def test_a_text_does_not_see_how_far_another_was_read(pocket: Family) -> None:
    """Its lags are those of a text that nobody has read, while the caches hold another one."""
    places = [i for i, feature in enumerate(begin(pocket)._tracker.table) if feature.name.startswith("lag_")]
    first = begin(pocket, 40)
    first.step(Arm("large", 3))
    finish(begin(pocket, 40, Sampling(0.8, seed=3)), Arm("large", 3))
    assert first.observation()[places].tolist() == [min(256, len(first.tokens) - 1)] * 3


def test_who_read_a_draft_and_added_nothing_is_rolled_back(pocket: Family) -> None:
    """A student that was asked behind another one's tokens, and hesitated, has read them, though they are not its own."""
    session = begin(pocket, 64, Sampling(1.0, seed=3))
    while not session.finished:
        before = len(session.tokens)
        if session.room >= 2:
            session.draft("small")
            assert session.draft("medium", Arm("medium", 1, min_margin=1e6)) is None
        record = session.verify()
        assert pocket.students["medium"].length <= before + record.num_accepted
    assert session.text_tokens == own_text(pocket, session.tokens[: session.prompt_length], session.text_tokens, Sampling(1.0, seed=3))


PASSES = {"the target's": lambda family: family.target, "a student's": lambda family: family.students["small"]}


@pytest.mark.parametrize("whose", PASSES)
@pytest.mark.parametrize("behind", [False, True], ids=["before it", "behind it"])
def test_a_text_that_was_cut_off_goes_on(pocket: Family, whose: str, behind: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted in any forward pass, by control-C in a notebook say, a session that goes on writes what it would have written."""
    model, forward, left = PASSES[whose](pocket), CachedModel.forward, 0

    def cut_off(self: CachedModel, *arguments: Any, **options: Any) -> torch.Tensor:
        nonlocal left
        left -= self is model
        if self is model and left == 0 and not behind:
            raise KeyboardInterrupt
        logits = forward(self, *arguments, **options)
        if self is model and left == 0:
            raise KeyboardInterrupt
        return logits

    uncut = begin(pocket, 40)
    finish(uncut, Arm("small", 3))
    for count in range(1, 6):
        session, other = begin(pocket, 40), begin(pocket, 40)
        session.step(Arm("small", 3))
        other.step(Arm("small", 1))  # so that the next pass of the target reads its text again
        left = count
        with monkeypatch.context() as patch:
            patch.setattr(CachedModel, "forward", cut_off)
            with pytest.raises(KeyboardInterrupt):
                finish(session, Arm("small", 3))
        finish(session, Arm("small", 3))
        assert session.text_tokens == uncut.text_tokens


@pytest.mark.parametrize("length", [255, 300])
def test_a_draft_may_have_more_tokens_than_second_choices_have_room(length: int) -> None:
    """The target's cache is as long as the text and 256 second choices; a longer draft that hedges everywhere still gives its text."""
    family = replace(load_family(FamilyConfig()), eos_token_ids=frozenset())  # its caches are new, and no longer than must be
    prompt = [1 + 7 * i % 2000 for i in range(460)]
    session = DecodingSession(family, prompt, Sampling(), 307)
    record = session.step(Arm("small", length, hedge_below=1e9))
    assert len(record.drafted) == length
    assert session.text_tokens == own_text(family, prompt, session.text_tokens, Sampling())


def test_a_finished_text_cannot_go_on(pocket: Family) -> None:
    """No round follows the last."""
    session = begin(pocket, 2)
    finish(session, Arm(NONE))
    with pytest.raises(ValueError, match="the text has ended"):
        session.step(Arm(NONE))
