"""The third promise: what replay says about a round is what live decoding does, for any sequence of arms."""

from dataclasses import dataclass
from random import Random

import numpy as np
import pytest

from dispatch_rl.config import ThresholdConfig
from dispatch_rl.decoding.arms import LOOKUP, Arm
from dispatch_rl.decoding.loop import decode
from dispatch_rl.decoding.rounds import Round, RoundTable
from dispatch_rl.policies.threshold import ThresholdPolicy
from dispatch_rl.replay.episodes import Episodes, Observations
from dispatch_rl.replay.running import replay
from tests.recordings import ROUNDING, Recorded
from tests.test_lossless import own_text


@dataclass(frozen=True)
class Compared:
    """One round, replayed and live."""

    text: int
    arm: Arm
    replayed: Round
    live: Round
    ended: tuple[bool, bool]
    observations: tuple[Observations, Observations]


@pytest.fixture(scope="session")
def compared(recorded: Recorded) -> list[Compared]:
    """All texts decoded three times by random arms, live and in replay, round by round."""
    world, rng, rounds = recorded.world, Random(0), []
    plain = [action for action, arm in enumerate(world.arms) if not arm.watches]
    for text in 3 * world.texts.tolist():
        session, episodes = recorded.session(text), Episodes(world, 1)
        episodes.restart(np.array([0]), np.array([text]))
        while not session.finished:
            action = rng.choice(plain) if rng.random() < 0.6 else rng.randrange(len(world.arms))
            observations = (episodes.observations()[0], session.observation())
            replayed, step = episodes.record(0, action), episodes.step(np.array([action]))
            assert replayed.latency_ms == pytest.approx(step.latency_ms[0], abs=1e-9)
            assert (replayed.num_accepted, len(replayed.drafted)) == (step.accepted[0], step.drafted[0])
            live = session.step(world.arms[action])
            ended = (bool(step.finished[0]), session.finished)
            rounds.append(Compared(text, world.arms[action], replayed, live, ended, observations))
            assert ended[0] == ended[1]
    return rounds


def test_every_round_is_the_same(compared: list[Compared]) -> None:
    """Drafted and accepted counts, tokens, students and ends agree exactly; of a draft, replay knows what stood."""
    for pair in compared:
        ours, live = pair.replayed, pair.live
        assert (ours.arm, ours.students, len(ours.drafted)) == (live.arm, live.students, len(live.drafted)), pair
        assert (ours.num_accepted, ours.emitted, pair.ended[0]) == (live.num_accepted, live.emitted, pair.ended[1]), pair
        assert ours.drafted[: ours.num_accepted] == live.drafted[: live.num_accepted], pair
        assert (ours.num_hedges, ours.hedge_stood) == (live.num_hedges, live.hedge_stood), pair
        np.testing.assert_allclose(ours.entropies_nats, live.entropies_nats, rtol=0, atol=ROUNDING)


def test_every_observation_is_the_same(recorded: Recorded, compared: list[Compared]) -> None:
    """What the target saw agrees up to float32's rounding, what follows from the rounds to the last bits."""
    assert [feature.column is not None for feature in recorded.world.features[:4]] == [True] * 4
    ours, live = (np.array([pair.observations[side] for pair in compared]) for side in range(2))
    np.testing.assert_allclose(ours[:, :4], live[:, :4], rtol=0, atol=ROUNDING)
    np.testing.assert_allclose(ours[:, 4:], live[:, 4:], rtol=1e-6, atol=0)


def test_the_recorded_path_is_the_targets_own_text(recorded: Recorded) -> None:
    """Token for token what one forward pass of the target alone chooses, and no longer than it may be."""
    traces = recorded.world.traces
    for text in range(traces.num_texts):
        path = traces.path_tokens(text)
        assert path is not None
        assert list(path) == own_text(recorded.family, traces.prompt(text), path, traces.sampling(text))
        ends = [i for i, token in enumerate(path) if token in recorded.family.eos_token_ids]
        full = len(path) == traces.limits[text] - traces.prompt_lengths[text]
        assert ends == [len(path) - 1] or (full and not ends)


def test_a_policy_that_looks_decodes_the_same(recorded: Recorded) -> None:
    """The threshold policy, all texts side by side in replay and one after the other live: the same table of rounds."""
    world, traces = recorded.world, recorded.world.traces
    texts = world.texts[:6]
    policy = ThresholdPolicy.from_config(ThresholdConfig(), traces.students, world.arms)
    lived = []
    for text in texts.tolist():
        sampling, longest = traces.sampling(text), recorded.config.prompts.max_new_tokens
        lived.append(decode(recorded.family, policy, world.arms, traces.prompt(text), sampling, longest))
    live = RoundTable.of([(text.rounds, text.entropies_at_decision) for text in lived])
    replayed = replay(world, policy, texts)
    order = np.lexsort((replayed.rounds.position, replayed.rounds.text))
    for column in ("text", "arm", "position", "drafted", "accepted", "emitted"):
        np.testing.assert_array_equal(getattr(replayed.rounds, column)[order], getattr(live, column), err_msg=column)
    np.testing.assert_allclose(replayed.rounds.entropy_nats[order], live.entropy_nats, rtol=0, atol=ROUNDING)
    assert replayed.tokens.tolist() == [len(text.tokens) - 1 for text in lived]


def test_the_comparison_meets_what_is_difficult(recorded: Recorded, compared: list[Compared]) -> None:
    """Partial acceptance, long drafts, lookup, full contexts and cut ends all occur, so that agreement means something."""
    traces, partial = recorded.world.traces, [0 < len(pair.live.drafted) < pair.arm.length for pair in compared]
    assert any(partial)
    assert any(len(pair.live.emitted) == pair.live.num_accepted < len(pair.live.drafted) for pair in compared)
    assert len({int(length) for length in traces.lengths}) > 2
    if recorded.name == "pocket":
        assert {pair.live.hedge_stood for pair in compared if pair.live.num_hedges} == {True, False}
    unsure = [pair for pair in compared if pair.arm.stops and len(pair.live.drafted) < pair.arm.length]
    assert any(not pair.live.drafted for pair in unsure)
    assert any(pair.live.num_accepted + 1 < len(pair.live.drafted) for pair in unsure)
    if recorded.name == "pocket":
        assert any(pair.live.num_accepted == len(pair.live.drafted) > 0 for pair in unsure)
        assert any(0 < pair.live.num_accepted < len(pair.live.drafted) for pair in compared)
        assert max(pair.live.num_accepted for pair in compared) >= 8
        assert {pair.live.num_accepted > 0 for pair in compared if pair.arm.student == LOOKUP} == {True, False}
    else:
        ends = traces.prompt_lengths + traces.lengths
        assert ((traces.prompt_lengths < 96) & (ends > 97)).any()
        assert ends.max() == recorded.family.context_limit
        full = [pair for pair in compared if pair.arm.student == "twin" and traces.prompt_lengths[pair.text] >= 96]
        assert full
        assert all(not pair.live.drafted for pair in full)
