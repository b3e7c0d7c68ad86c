"""Adaptive policies: what they estimate, what they lose at most, that they come back, and that they stay what they are."""

import copy
from pathlib import Path
from random import Random

import numpy as np
import pytest

from dispatch_rl.contestants import adaptive
from dispatch_rl.decoding.arms import NONE, Arm, ArmTable
from dispatch_rl.decoding.families import Family
from dispatch_rl.decoding.loop import Dispatch, DispatchWarning
from dispatch_rl.decoding.sampling import Sampling
from dispatch_rl.decoding.session import DecodingSession
from dispatch_rl.errors import UserError
from dispatch_rl.policies.adaptive import AdaptivePolicy
from dispatch_rl.policies.base import Policy
from dispatch_rl.policies.fixed import FixedPolicy
from dispatch_rl.policies.storage import from_tensors, to_tensors
from dispatch_rl.policies.threshold import ThresholdPolicy
from dispatch_rl.replay.experts import experts
from dispatch_rl.replay.running import replay
from dispatch_rl.replay.world import Floats, ReplayWorld
from dispatch_rl.runtime.bundle import Bundle
from tests.bundles import ARMS, network, pocket_bundle, write
from tests.recordings import Recorded
from tests.traces import Row, made_up_profile, made_up_world

NOTHING = np.zeros(2, dtype=np.float32)
TEXTS, TOKENS = 60, 60
EASY, HARD = 0.05, 2.0
"""Entropies (nats) of the two sorts of text."""


def texts(rng: Random, entropy: float, **shares: float) -> list[Row]:
    """Return texts of one sort, in which students are right with these probabilities."""
    rows: list[Row] = []
    for _ in range(TEXTS):
        matches = {f"match_{name}": [rng.random() < share for _ in range(TOKENS)] for name, share in shares.items()}
        rows.append({"prompt": [1], "entropy": [entropy * (0.5 + rng.random()) for _ in range(TOKENS)], **matches})
    return rows


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> ReplayWorld:
    """Easy texts, for which long drafts are best, and behind them as many hard ones, for which drafting is a waste."""
    rng = Random(0)
    rows = [*texts(rng, EASY, a=0.98, b=0.6), *texts(rng, HARD, a=0.1, b=0.05)]
    arms = [Arm("a", 8), Arm("a", 2), Arm("b", 8), Arm("b", 2), Arm(NONE)]
    return made_up_world(tmp_path_factory.mktemp("two") / "t.parquet", rows, arms, made_up_profile(10, a=2, b=1))


def only(world: ReplayWorld, first: int, last: int) -> ReplayWorld:
    """Return the world with some of its texts."""
    part = copy.copy(world)
    part.texts = world.texts[first:last]
    return part


def fixed_ms(world: ReplayWorld) -> Floats:
    """Return what every fixed arm takes for each text ``[arms, texts]``."""
    return np.stack([replay(world, FixedPolicy(action)).latency_ms for action in range(len(world.arms))])


def adapting(world: ReplayWorld, learned: Policy | int, seed: int = 0) -> AdaptivePolicy:
    """Return a policy for the world, all of whose arms may stand in."""
    names = [feature.name for feature in world.features]
    policy = FixedPolicy(learned) if isinstance(learned, int) else learned
    actions = [action for action in range(len(world.arms)) if action != learned]
    return AdaptivePolicy(policy, actions, names.index("entropy_mean"), seed=seed)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("learned", range(5))
@pytest.mark.parametrize("sort", [0, 1], ids=["easy", "hard"])
def test_whatever_was_learned_little_is_lost(world: ReplayWorld, sort: int, learned: int, seed: int) -> None:
    """From the first text on, it takes at most 1.07 of the best fixed arm's time, whoever was learned, who may take threefold."""
    part = only(world, sort * TEXTS, (sort + 1) * TEXTS)
    fixed = fixed_ms(part).sum(axis=1)
    mine = replay(part, adapting(part, learned, seed)).latency_ms.sum()
    assert mine <= 1.07 * fixed.min()
    assert fixed.max() > 2 * fixed.min()


def test_trials_keep_to_their_budget(world: ReplayWorld) -> None:
    """None begins beyond the share; one round more may have passed it. Without a budget there are none."""
    part = only(world, TEXTS, 2 * TEXTS)
    spent = {}
    for share in (0.0, 0.005, 0.02):
        policy = AdaptivePolicy(FixedPolicy(4), range(4), 1, share=share, credit=1000)
        total = replay(part, policy).latency_ms.sum()
        spent[share] = policy.trial_ms
        assert policy.trial_ms <= share * (total + 1000 * 11) + 30 * (share > 0)
    assert spent[0.0] == 0 < spent[0.005] < spent[0.02]


@pytest.mark.parametrize("seed", range(4))
def test_it_comes_back(world: ReplayWorld, seed: int) -> None:
    """Easy, hard, easy: in each part it takes at most 1.06 of that part's best arm's time, and finds within a text what it left."""
    easy, hard = np.arange(TEXTS), np.arange(TEXTS, 2 * TEXTS)
    policy = adapting(world, 0, seed)
    times = replay(world, policy, world.texts[np.concatenate([easy, hard, easy])]).latency_ms
    fixed = fixed_ms(world)
    for part, sort in enumerate((easy, hard, easy)):
        assert times[part * TEXTS : (part + 1) * TEXTS].sum() <= 1.06 * fixed[:, sort].sum(axis=1).min()
    assert times[2 * TEXTS : 2 * TEXTS + 5].sum() <= 1.25 * fixed[0, :5].sum()


def test_it_comes_back_where_nothing_tells_the_conditions(world: ReplayWorld) -> None:
    """The learned policy gets three times slower at the same entropy, and later as fast as before: it is left and taken back."""
    policy, shares = AdaptivePolicy(FixedPolicy(0), [1], None), []
    for slow in (False, True, False):
        asked = []
        for _ in range(400):
            policy.reset()
            for _ in range(10):
                action = policy(NOTHING)
                asked.append(action)
                policy.update(action, 4, 8.0 if action == 1 else 18.0 if slow else 6.0)
        shares.append(1 - np.mean(asked[len(asked) // 2 :]))
    assert shares[0] > 0.95
    assert shares[1] < 0.05
    assert shares[2] > 0.9


def test_mixed_texts_have_each_their_own(world: ReplayWorld) -> None:
    """Sorts in random order are told apart by the entropy: a tenth faster than any fixed arm, or more."""
    order = np.random.default_rng(0).permutation(len(world.texts))
    times = replay(world, adapting(world, 3), world.texts[order]).latency_ms.sum()
    fixed = fixed_ms(world)
    assert times < 0.9 * fixed.sum(axis=1).min()


def test_experience_lasts_from_text_to_text_and_is_not_shared(world: ReplayWorld) -> None:
    """Who has seen texts loses nothing on the next ones; a copy goes on alike; a copy from before knows nothing of it."""
    part = only(world, TEXTS, 2 * TEXTS)
    policy = adapting(part, 2)
    untouched = copy.deepcopy(policy)
    first = replay(part, policy).latency_ms.sum()
    twin = copy.deepcopy(policy)
    again = replay(part, policy).latency_ms
    assert again.sum() < first
    assert (again == replay(part, twin).latency_ms).all()
    assert replay(part, untouched).latency_ms.sum() == first


def test_equal_seeds_choose_alike(world: ReplayWorld) -> None:
    """When trials begin depends on the seed and on nothing else."""
    runs = [replay(world, adapting(world, 1, seed)).rounds.arm.tolist() for seed in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]


EMITTED = np.array([[17.0, 17.0, 17.0], [5.0, 5.0, 1.0], [8.0, 1.5, 8.0]])
"""Tokens per round of three experts in three sorts of text, about."""
ROUND_MS = np.array([10.0, 12.0, 10.0])
"""What a round of them takes; the first is the best, or nearly, of every sort."""


@pytest.mark.parametrize("seed", range(8))
def test_who_is_best_of_texts_that_differ_tenfold_stays(seed: int) -> None:
    """Nothing tells the sorts apart, and the learned policy, the best in each, loses 6 % at most.

    What an expert takes for a token depends on the text more than on the expert: judged by whole texts, any of them may look best.
    """
    rng = np.random.default_rng(seed)
    policy, taken, alone = AdaptivePolicy(FixedPolicy(0), [1, 2], None, seed=seed), 0.0, 0.0
    for sort in rng.integers(3, size=100):
        policy.reset()
        tokens = 0
        while tokens < 200:
            action = policy(NOTHING)
            emitted = int(np.clip(rng.poisson(EMITTED[sort, action]), 1, 17))
            policy.update(action, emitted, ROUND_MS[action])
            tokens += emitted
            taken += ROUND_MS[action]
            alone += emitted * ROUND_MS[0] / EMITTED[sort, 0]
    assert taken < 1.06 * alone


def test_who_was_unlucky_once_is_tried_again() -> None:
    """An arm that takes half of the time, but more than the other in the first text, is found all the same."""
    policy, asked = AdaptivePolicy(FixedPolicy(0), [1], None), []
    for text in range(60):
        policy.reset()
        for _ in range(20):
            asked.append(policy(NOTHING))
            policy.update(asked[-1], 4, 10.0 if asked[-1] == 0 else 14.0 if text == 0 else 5.0)
    assert np.mean(asked[: 20 * 20]) < 0.9 < np.mean(asked[40 * 20 :])


def test_experts_fit_texts_of_other_sorts(world: ReplayWorld) -> None:
    """The best arm first, then a long and a short draft of every student though all texts are easy, and the target alone."""
    easy = only(world, 0, TEXTS)
    assert [world.arms[action].name for action in experts(easy)] == ["a-8", "a-2", "b-8", "b-2", "none"]
    policy = adaptive(ThresholdPolicy([], [1]), easy)
    assert policy.actions == (0, 1, 2, 3, 4)
    assert [feature.name for feature in easy.features][policy.entropy_index or 0] == "entropy_mean"


def test_an_arm_that_stops_by_itself_is_for_hard_texts_too(recorded: Recorded) -> None:
    """Where no arm is short, it is the cautious one; the longer of two drafts is for easy texts."""
    students = recorded.world.traces.students
    arms = ArmTable([arm for name in students for arm in (Arm(name, 13), Arm(name, 5), Arm(name, 5, min_margin=1.17))])
    names = [arms[action].name for action in experts(ReplayWorld(recorded.world.traces, recorded.world.profile, arms))]
    assert set(names) >= {f"{name}-{kind}" for name in students for kind in ("13", "5-m1.17")}


@pytest.mark.parametrize("round_", [(0, 1.0), (1, float("nan")), (1, -1.0), (1, float("inf"))])
def test_nonsense_is_not_learned(round_: tuple[int, float]) -> None:
    """It is refused before anything is kept of it, so later texts are decoded as if nothing had been."""
    policy = AdaptivePolicy(FixedPolicy(0), [1], None)
    policy(NOTHING)
    with pytest.raises(ValueError, match="a round of"):
        policy.update(0, *round_)
    policy.reset()
    assert policy.estimates()[1].error == np.inf
    assert policy.trial_ms == 0


def test_an_entropy_that_is_no_number_is_refused() -> None:
    """Dispatch then lets the target write alone; the next text is judged as before."""
    policy = AdaptivePolicy(FixedPolicy(0), [1], 0)
    for bad in (np.nan, -1.0):
        with pytest.raises(ValueError, match=r"not a number|math domain|positive"):
            policy(np.array([bad, 0], dtype=np.float32))
    assert policy(NOTHING) == 0


def test_a_failing_expert_leaves_the_target_alone(pocket: Family) -> None:
    """NaN weights: one warning, no draft after it, and the text is the target's; the next text begins with the policy again."""
    broken = network(tuple(pocket.students), len(ARMS))
    broken._rest[-1][:, -1] = np.nan
    policy = AdaptivePolicy(broken, [0, 5], 1)
    expected = _alone(pocket)
    for _ in range(2):
        session = DecodingSession(pocket, pocket.encode("a ="), Sampling(), 12)
        dispatch = Dispatch(session, policy, ARMS)
        with pytest.warns(DispatchWarning, match="not numbers"):
            dispatch.step()
        while not session.finished:
            dispatch.step()
        assert session.text_tokens == expected
        assert not any(record.drafted for record in session.rounds)


def _alone(family: Family) -> list[int]:
    session = DecodingSession(family, family.encode("a ="), Sampling(), 12)
    while not session.finished:
        session.step(Arm(NONE))
    return list(session.text_tokens)


LEARNED = [network(("small", "medium", "large"), len(ARMS)), ThresholdPolicy([0.4], [0, 2]), FixedPolicy(3)]


@pytest.mark.parametrize("learned", LEARNED, ids=["network", "threshold", "fixed"])
def test_a_bundle_keeps_it_without_its_experience(pocket: Family, learned: Policy, tmp_path: Path) -> None:
    """What is read chooses as a new one, round by round; experience stays where it was made."""
    used = AdaptivePolicy(learned, [5, 0], 1, share=0.5, credit=100.0, seed=3)
    fresh, rng = copy.deepcopy(used), np.random.default_rng(0)
    _choices(used, rng)
    read = Bundle.read(write(pocket_bundle(pocket, used), tmp_path / "bundle")).policy
    assert isinstance(read, AdaptivePolicy)
    assert (read.actions, read.entropy_index, read.share, read.credit, read.seed) == ((5, 0), 1, 0.5, 100.0, 3)
    assert _choices(read, np.random.default_rng(1)) == _choices(fresh, np.random.default_rng(1))


def _choices(policy: Policy, rng: np.random.Generator) -> list[int]:
    chosen = []
    for number in range(400):
        if number % 20 == 0:
            policy.reset()
        chosen.append(policy(rng.uniform(0, 3, size=13).astype(np.float32)))
        policy.update(chosen[-1], int(rng.integers(1, 5)), float(rng.uniform(3, 9)))
    assert len(set(chosen)) > 1
    return chosen


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"actions": np.array([0, 6])}, "arm 6 is not one of 6"),
        ({"actions": np.array([0.5])}, "actions is not there as a vector of int64"),
        ({"entropy": np.array([13])}, r"entropy is \[13\]"),
        ({"budget": np.array([np.nan, 1])}, r"budget is \[nan, 1.0\]"),
        ({"budget": np.array([0.1])}, r"budget is \[0.1\]"),
        ({"seed": np.array([-1])}, r"seed \[-1\]"),
        ({"adaptive/action": np.array([1])}, "it adapts adaptive and fixed"),
        ({"fixed/action": np.array([9])}, "arm 9 is not one of 6"),
    ],
)
def test_broken_tensors_are_one_line(change: dict[str, np.ndarray], message: str) -> None:
    """Arms, features and numbers that are not there."""
    kind, tensors = to_tensors(AdaptivePolicy(FixedPolicy(0), [1], 1))
    assert isinstance(from_tensors(kind, tensors, 13, 6, 0), AdaptivePolicy)
    with pytest.raises(UserError, match=message):
        from_tensors(kind, {**tensors, **change}, 13, 6, 0)
