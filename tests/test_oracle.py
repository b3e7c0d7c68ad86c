"""The bound: what no dispatcher beats, against a recursion over all sequences of arms that shares no code with it."""

from collections.abc import Sequence
from pathlib import Path
from random import Random

import numpy as np
import pytest

from dispatch_rl.decoding.arms import LOOKUP, NONE, Arm
from dispatch_rl.policies.base import Policy
from dispatch_rl.policies.fixed import FixedPolicy, RandomPolicy
from dispatch_rl.replay.oracle import cheapest, cheapest_within
from dispatch_rl.replay.profile import TARGET, ForwardLatency, Profile
from dispatch_rl.replay.running import replay
from dispatch_rl.replay.world import ReplayWorld
from tests.traces import Row, constant, latencies_ms, made_up_profile, made_up_world, random_rows

ARMS = [Arm("a", 1), Arm("b", 3), Arm("a", 4), Arm(LOOKUP, 2), Arm(NONE)]
LIMITS = {"a": 12, "b": 7}


def random_latency(rng: Random, scale: float) -> ForwardLatency:
    """Return a grid of latencies that rise with the query length and go anywhere with the context."""
    queries, contexts = (1, 3, 4), (2, 6, 11)
    first = [scale * (1 + rng.random()) for _ in contexts]
    second = [ms + scale * rng.random() for ms in first]
    grid = (first, second, [ms + scale * rng.random() for ms in second])
    following = tuple(scale * rng.random() for _ in contexts) if rng.random() < 0.5 else None
    return ForwardLatency(queries, contexts, tuple(tuple(row) for row in grid), following)


def random_profile(rng: Random) -> Profile:
    """Return a profile in which every kind of cost is there."""
    models = {TARGET: random_latency(rng, 9), "a": random_latency(rng, 1), "b": random_latency(rng, 2)}
    if rng.random() < 0.5:
        models[LOOKUP] = random_latency(rng, 0.3)
    return Profile("made up", "float32", models, overhead_ms=rng.random(), token_ms=rng.random())


def forward_ms(model: ForwardLatency, query: int, context: int) -> float:
    """Return one latency: linear in the context, then in the query length, whose last slope goes on."""
    values = [float(np.interp(context, model.contexts, row)) for row in model.median_ms]
    if len(values) == 1:
        return values[0]
    right = next((i for i in range(1, len(values)) if query <= model.queries[i]), len(values) - 1)
    step = (query - model.queries[right - 1]) / (model.queries[right] - model.queries[right - 1])
    return max(0.0, values[right - 1] + step * (values[right] - values[right - 1]))


def drafted_of(row: Row, arm: Arm, emitted: int) -> int:
    """Return how many tokens an arm drafts: no more than may be emitted less one, than its context holds, than lookup proposes."""
    length = len(row["prompt"]) + emitted
    room = min(row["limit"] - length - 1, LIMITS.get(arm.student, 99) - length + 1)
    proposed: int = row["lookup_drafted"][emitted] if arm.student == LOOKUP else 99
    return min(arm.length, int(max(room, 0)), proposed)


def round_of(row: Row, profile: Profile, arm: Arm, emitted: int) -> tuple[int, float]:
    """Return the tokens that one round emits and its latency, if the student had read everything before."""
    drafted = drafted_of(row, arm, emitted)
    if arm.student == LOOKUP:
        accepted = min(drafted, row["lookup_accepted"][emitted])
    else:
        match = row.get(f"match_{arm.student}", [])[emitted : emitted + drafted]
        accepted = [*match, False].index(False)
    count = min(accepted + 1, len(row["path"]) - emitted)
    length = len(row["prompt"]) + emitted
    ms = profile.overhead_ms + count * profile.token_ms + forward_ms(profile.models[TARGET], drafted + 1, length + drafted)
    if drafted and arm.student in profile.models:
        model = profile.models[arm.student]
        ms += forward_ms(model, 1, length)
        for context in range(length + 1, length + drafted):
            ms += forward_ms(model, 1, context) if model.next_ms is None else float(np.interp(context, model.contexts, model.next_ms))
    return count, ms


def least_ms(row: Row, profile: Profile, arms: Sequence[Arm], emitted: int = 1) -> float:
    """Return the least latency over all sequences of arms, by trying all of them."""
    if emitted == len(row["path"]):
        return 0.0
    rounds = [round_of(row, profile, arm, emitted) for arm in arms]
    return min(ms + least_ms(row, profile, arms, emitted + count) for count, ms in rounds)


@pytest.mark.parametrize("seed", range(40))
def test_equal_to_trying_every_sequence(tmp_path: Path, seed: int) -> None:
    """Random texts, hits and latencies; room, contexts and proposals end drafts early; cheap lookup or none."""
    rng = Random(seed)
    rows, profile = random_rows(rng, 3, longest=6), random_profile(rng)
    arms = rng.sample(ARMS, rng.randint(2, len(ARMS)))
    metadata = {"students": ["a", "b"], "first_position": 1, "context_limits": LIMITS}
    world = made_up_world(tmp_path / "mine", rows, arms, profile, metadata)
    expected = [least_ms(row, profile, arms) for row in rows]
    np.testing.assert_allclose(cheapest(world).latency_ms, expected, rtol=1e-9)
    some = sorted(rng.sample(range(len(arms)), 2))
    fewer = [least_ms(row, profile, [arms[action] for action in some]) for row in rows]
    np.testing.assert_allclose(cheapest(world, some).latency_ms, fewer, rtol=1e-9)


def test_by_hand(tmp_path: Path) -> None:
    """Three tokens behind the first; the target takes 10 ms, 'a' 1 and 'b' 4 a token; 'a' misses the first and hits two, 'b' hits one.

    Before the last token 'none' is best: 10. Before the last two 'a' drafts both for 1 + 1 + 10 = 12, against 10 + 10 with 'none'. At the
    beginning 'a' emits one token for 12, 'b' two for 4 + 10 = 14 and 'none' one for 10: 12 + 12, 14 + 10 and 10 + 12. So 'none' and then
    'a', 22 ms. Always 'a' takes 12 + 12, always 'b' 14 + 14, always 'none' 3 * 10.
    """
    rows: list[Row] = [{"match_a": [False, False, True, True], "match_b": [False, True, False, False], "prompt": [7, 7]}]
    arms = [Arm("a", 2), Arm("b", 1), Arm(NONE)]
    world = made_up_world(tmp_path / "mine", rows, arms, made_up_profile(10.0, a=1.0, b=4.0), {"students": ["a", "b"], "first_position": 1})
    bound = cheapest(world)
    assert bound.latency_ms.tolist() == [22.0]
    assert bound.actions[1:4].tolist() == [2, 0, 2]
    assert latencies_ms(world, 0, [2, 0]) == pytest.approx([10.0, 12.0])
    assert [replay(world, FixedPolicy(action)).latency_ms.tolist() for action in range(3)] == [[24.0], [28.0], [30.0]]
    assert (cheapest_within(world, "student")[0], cheapest_within(world, "length")[0]) == ("a", "2")


def random_world(path: Path, rng: Random, profile: Profile) -> ReplayWorld:
    """Return a world of texts that are longer than all sequences of arms could be tried on."""
    metadata = {"students": ["a", "b"], "first_position": 1, "context_limits": LIMITS}
    return made_up_world(path, random_rows(rng, 12, longest=30), ARMS, profile, metadata)


@pytest.mark.parametrize("seed", range(8))
def test_nobody_beats_the_bound(tmp_path: Path, seed: int) -> None:
    """Text by text: all arms <= some arms <= a fixed arm, and a random policy; catching up only adds."""
    rng = Random(seed)
    world = random_world(tmp_path / "mine", rng, random_profile(rng))
    bound = cheapest(world).latency_ms
    policies: list[Policy] = [*(FixedPolicy(action) for action in range(len(ARMS))), RandomPolicy(len(ARMS), seed)]
    for action, policy in enumerate(policies):
        taken = replay(world, policy).latency_ms
        assert (bound <= taken + 1e-9).all()
        if action < len(ARMS):
            alone = cheapest(world, [action]).latency_ms
            assert (bound <= alone + 1e-9).all()
            assert (alone <= taken + 1e-9).all()
    for key, groups in (("student", {"a", "b", LOOKUP, NONE}), ("length", {"0", "1", "2", "3", "4"})):
        name, within = cheapest_within(world, key)
        everyone = {group: cheapest(world, [i for i, arm in enumerate(ARMS) if str(getattr(arm, key)) == group]) for group in groups}
        assert name == min(groups, key=lambda group: everyone[group].latency_ms.sum())
        np.testing.assert_array_equal(within.latency_ms, everyone[name].latency_ms)
        assert (bound <= within.latency_ms + 1e-9).all()


def test_the_bound_is_reached_where_catching_up_is_free(tmp_path: Path) -> None:
    """With latencies that do not depend on the query length, the best arms of the bound take just as long in replay."""
    models = {TARGET: constant(9.0), "a": ForwardLatency((1,), (1, 40), ((1.0, 2.0),), (0.5, 0.7)), "b": constant(2.0)}
    world = random_world(tmp_path / "mine", Random(0), Profile("made up", "float32", models, overhead_ms=0.3, token_ms=0.1))
    bound = cheapest(world)
    for i, text in enumerate(world.texts.tolist()):
        actions, emitted = [], world.traces.first_position
        while emitted < world.traces.lengths[text]:
            actions.append(int(bound.actions[world.traces.offsets[text] + text + emitted]))
            emitted += int(world.outcomes(np.array([text]), np.array([emitted]), np.array(actions[-1:])).emitted[0])
        assert sum(latencies_ms(world, text, actions)) == pytest.approx(bound.latency_ms[i])


@pytest.mark.parametrize(
    "student",
    [
        ForwardLatency((1, 4, 16), (1,), ((3.0,), (1.0,), (2.0,))),
        ForwardLatency((4, 8), (1,), ((1.0,), (10.0,))),
        ForwardLatency((1, 8), (1,), ((2.0,), (9.0,))),
    ],
    ids=["noise", "no query of one", "a slope"],
)
@pytest.mark.parametrize("prompt", [[1, 2, 3], None])
def test_strange_latencies_keep_it_a_bound(tmp_path: Path, student: ForwardLatency, prompt: list[int] | None) -> None:
    """Reading more that was measured faster, latencies that would be negative by their slope, and texts without a prompt."""
    rows: list[Row] = [{"match_a": [True, False] * 9, **({"prompt": prompt} if prompt else {})}]
    profile = Profile("made up", "float32", {TARGET: constant(5.0), "a": student})
    world = made_up_world(tmp_path / "mine", rows, [Arm("a", 1), Arm("a", 3)], profile)
    for action in range(2):
        replayed = replay(world, FixedPolicy(action))
        assert cheapest(world, [action]).latency_ms <= replayed.latency_ms + 1e-9
        assert replayed.rounds.latency_ms.min() >= 5


def few_lines(accepted: Sequence[int], arms: Sequence[tuple[Sequence[int], int, float]], verify_ms: float) -> list[float]:
    """Return the oracle's latency and that of every fixed arm, each arm given by its accepted numbers, length and cost per token."""

    def least(choices: Sequence[tuple[Sequence[int], int, float]]) -> float:
        value = [0.0] * (len(accepted) + 1)
        for k in reversed(range(len(accepted))):
            value[k] = min(
                verify_ms + length * ms + value[min(k + min(hits[k], length) + 1, len(accepted))] for hits, length, ms in choices
            )
        return value[0]

    return [least(arms), *(least([arm]) for arm in arms)]


@pytest.mark.parametrize("form", ["", ".parquet", ".jsonl"])
def test_foreign_recordings_with_constant_costs(tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers of accepted tokens and three prices, as another project has them: a program of a few lines agrees to 1e-9."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rng, pick = Random(5), Random(6).randrange
    rows: list[Row] = [
        {f"accepted_{name}": [pick(most) for _ in range(length)] for name, most in (("a", 4), ("b", 9))} for length in (1, 30, 77)
    ]
    arms, prices = [Arm("a", 2), Arm("b", 5), Arm("b", 8), Arm(NONE)], {"a": rng.random(), "b": 3 * rng.random()}
    world = made_up_world(tmp_path / f"mine{form}", rows, arms, made_up_profile(20 + rng.random(), **prices))
    target_ms = world.profile.models[TARGET].median_ms[0][0]
    for text, row in enumerate(rows):
        table = [(row.get(f"accepted_{arm.student}", [0] * 99), arm.length, prices.get(arm.student, 0.0)) for arm in arms]
        oracle, *fixed = few_lines(row["accepted_a"], table, target_ms)
        assert cheapest(world).latency_ms[text] == pytest.approx(oracle, abs=1e-9)
        for action, expected in enumerate(fixed):
            assert replay(world, FixedPolicy(action)).latency_ms[text] == pytest.approx(expected, abs=1e-9)
