"""Dispatch by token: replay says of every round what live decoding does, for any sequence of actions."""

from dataclasses import dataclass
from random import Random

import numpy as np
import pytest

from dispatch_rl.config import RewardConfig
from dispatch_rl.decoding.arms import LOOKUP
from dispatch_rl.decoding.rounds import Round
from dispatch_rl.decoding.session import DecodingSession
from dispatch_rl.envs.live_tokens import LiveTokenEnv
from dispatch_rl.envs.replay import Observation
from dispatch_rl.envs.replay_tokens import ReplayTokenEnv
from tests.recordings import ROUNDING, Recorded

REWARD = RewardConfig(reference_ms_per_token=3.0)


@dataclass(frozen=True)
class Compared:
    """One step, replayed and live."""

    action: str
    comparable: bool
    """Whether the observations behind it must be equal: the draft is on the path, or has one drafter."""
    replayed: Round | None
    live: Round | None
    ended: tuple[bool, bool]
    observations: tuple[Observation, Observation]


class LiveOnRecorded(LiveTokenEnv):
    """Decodes recorded texts."""

    def begin(self, session: DecodingSession) -> Observation:
        """Begin one of them."""
        self._session = session
        return self._begun()


def next_action(rng: Random, names: tuple[str, ...], last: int | None) -> int:
    """Return a random action that often goes on with the last one."""
    if last is not None and last < len(names) - 1 and rng.random() < 0.75:
        return last
    return rng.randrange(len(names))


def on_path_or_alone(drafters: tuple[str, ...], right: int) -> bool:
    """Return whether nobody took over behind a wrong token, which the ``right`` leading ones are not."""
    return len(set(drafters[right:])) <= 1


@pytest.fixture(scope="session")
def steps(recorded: Recorded) -> list[Compared]:
    """All texts decoded by random actions, live and in replay, step by step."""
    world, rng, found = recorded.world, Random(1), []
    replayed = ReplayTokenEnv(world=world, reward=REWARD)
    live = LiveOnRecorded(recorded.config, reward=REWARD, family=recorded.family, longest_draft=replayed.longest_draft)
    assert live.action_names == replayed.action_names
    assert live.features == replayed.features
    for text in world.texts.tolist():
        observations = (replayed.reset(options={"prompt": text})[0], live.begin(recorded.session(text)))
        found.append(Compared("begin", True, None, None, (False, live.session.finished), observations))
        action, finished, alike, alone = None, False, True, True
        while not finished:
            action = next_action(rng, live.action_names, action)
            ours, _, finished, _, told = replayed.step(action)
            theirs, _, ended, _, seen = live.step(action)
            told_and_seen = (replayed.drafts.drafted, tuple(token.student for token in live.session.drafted))
            alone = all(on_path_or_alone(drafters, replayed.drafts.stands) for drafters in told_and_seen)
            if told["round"] is not None and seen["round"] is not None:
                # Who drafted where replay does not know the tokens shows in the share that is accepted, and in what students have read.
                alike = alike and told["round"].students == seen["round"].students
            comparable = alike and alone and not finished
            found.append(Compared(live.action_names[action], comparable, told["round"], seen["round"], (finished, ended), (ours, theirs)))
            assert finished == ended
    return found


def test_every_round_is_the_same(steps: list[Compared]) -> None:
    """Both verify in the same step; accepted counts, tokens and ends agree exactly, drafts as far as they are on the path."""
    for step in steps:
        ours, live = step.replayed, step.live
        assert (ours is None) == (live is None), step
        if ours is None or live is None:
            continue
        assert (ours.num_accepted, ours.emitted, step.ended[0]) == (live.num_accepted, live.emitted, step.ended[1]), step
        stood = slice(0, ours.num_accepted + 1)
        assert ours.students[stood] == live.students[stood], step
        assert ours.drafted[: ours.num_accepted] == live.drafted[: live.num_accepted], step
        if all(on_path_or_alone(record.students, record.num_accepted) for record in (ours, live)):
            assert (ours.arm, ours.students) == (live.arm, live.students), step
            assert all(token in (None, other) for token, other in zip(ours.drafted, live.drafted, strict=True)), step


def test_observations_are_the_same_while_nobody_takes_over_behind_a_wrong_token(recorded: Recorded, steps: list[Compared]) -> None:
    """What models say agrees up to rounding, everything else to the last bits."""
    names = [feature.name for feature in ReplayTokenEnv(world=recorded.world, reward=REWARD).features]
    rounded = np.array(["entropy" in name or "margin" in name or name == "top1_probability" for name in names])
    ours, live = (np.array([step.observations[side] for step in steps if step.comparable]) for side in range(2))
    np.testing.assert_allclose(ours[:, rounded], live[:, rounded], rtol=0, atol=ROUNDING * 8)
    np.testing.assert_allclose(ours[:, ~rounded], live[:, ~rounded], rtol=1e-6, atol=0)
    assert len(ours) > 0.4 * len(steps)


def test_the_comparison_meets_what_is_difficult(recorded: Recorded, steps: list[Compared]) -> None:
    """Hand-overs on and off the path, long drafts off the path, passes, and lookup behind students all occur."""
    rounds = [step.live for step in steps if step.live is not None]
    assert len(rounds) > 100
    assert any(not on_path_or_alone(record.students, record.num_accepted) for record in rounds)
    assert any(len(record.students) - record.num_accepted > 4 for record in rounds if len(set(record.students)) == 1)
    assert any(step.observations[1][names_of(recorded).index("draft_passed")] for step in steps)
    if recorded.name == "pocket":
        assert any(len(set(record.students[: record.num_accepted])) > 1 for record in rounds)
        assert any(LOOKUP in record.students[1 : record.num_accepted] for record in rounds)


def names_of(recorded: Recorded) -> list[str]:
    """Return the names of the features."""
    return [feature.name for feature in ReplayTokenEnv(world=recorded.world, reward=REWARD).features]
