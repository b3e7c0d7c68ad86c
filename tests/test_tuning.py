"""Tuning in replay: the best fixed arm, the best thresholds, and the command that shows them."""

import json
from itertools import product
from pathlib import Path
from random import Random

import numpy as np
import pytest

from dispatch_rl import calibrate
from dispatch_rl.decoding.arms import LOOKUP, NONE, Arm
from dispatch_rl.errors import UserError
from dispatch_rl.policies.fixed import FixedPolicy
from dispatch_rl.policies.threshold import ThresholdPolicy
from dispatch_rl.replay import tuning
from dispatch_rl.replay.running import replay
from dispatch_rl.replay.traces import load_traces
from dispatch_rl.replay.tuning import Rule, best_fixed, latencies_ms, tune_thresholds
from dispatch_rl.replay.world import ReplayWorld
from tests.traces import Row, made_up_profile, made_up_world, random_rows, write_traces

STUDENTS = ("a", "b", "c")
ENTROPIES = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.5, 3.0, 6.0)
PROFILE = made_up_profile(10, a=1, b=1, c=1, never=1)


def planted_rows(rule: Rule, texts: int = 12) -> list[Row]:
    """Return texts of 40 tokens in which the student of ``rule``, by the entropy at the token before, is right and the others are not."""
    rng, rows = Random(0), []
    policy = ThresholdPolicy(rule.limits, rule.actions)
    for _ in range(texts):
        entropy = [rng.choice(ENTROPIES) for _ in range(40)]
        right = policy.batch(np.array([0.0, *entropy[:-1]])[:, None]).tolist()
        matches = {f"match_{name}": [student == i for student in right] for i, name in enumerate((*STUDENTS, "never"))}
        rows.append({"prompt": [1, 2], "entropy": entropy, **matches})
    return rows


def planted_world(path: Path, rule: Rule) -> ReplayWorld:
    """Return a world for ``rule``: actions 0, 1 and 2 are the students, and there are arms that only waste time."""
    arms = [*(Arm(name, 1) for name in STUDENTS), Arm(NONE), Arm("never", 1), Arm("never", 3)]
    return made_up_world(path / "t.parquet", planted_rows(rule), arms, PROFILE)


def random_world(path: Path, seed: int) -> ReplayWorld:
    """Return a small world with every sort of arm, in which nothing is planted."""
    rng = Random(seed)
    arms = [Arm("a", 2), Arm("b", 1), Arm("b", 4), Arm(LOOKUP, 3), Arm(NONE)]
    profile = made_up_profile(10, overhead_ms=0.5, token_ms=0.1, a=rng.uniform(0.5, 4), b=rng.uniform(0.5, 6), lookup=0.2)
    return made_up_world(path / f"{seed}.parquet", random_rows(rng, 15), arms, profile)


@pytest.mark.parametrize(
    "rule",
    [
        Rule((0.4, 0.8), (0, 1, 2)),
        Rule((0.4, 0.8), (2, 0, 1)),
        Rule((0.15, 0.25), (1, 2, 0)),
        Rule((0.1, 5.0), (1, 0, 2)),
        Rule((0.6, 0.8), (0, 2, 0)),
        Rule((0.6,), (2, 1)),
        Rule((), (1,)),
    ],
)
def test_a_planted_rule_is_found_exactly(tmp_path: Path, rule: Rule) -> None:
    """The same arm at every entropy there is, no limit too many, and two tokens in every round of 11 ms."""
    tuned = tune_thresholds(planted_world(tmp_path, rule))
    assert tuned.policy.actions == rule.actions
    seen = np.array(ENTROPIES, dtype=np.float32)[:, None]
    np.testing.assert_array_equal(tuned.policy.batch(seen), ThresholdPolicy(rule.limits, rule.actions).batch(seen))
    assert tuned.latency_ms_per_token == pytest.approx(5.5, rel=1e-12)


def test_a_given_start_is_improved(tmp_path: Path) -> None:
    """Without leave to cut regions, the rule comes from the start: one useless arm everywhere, and one limit more than is needed."""
    world = planted_world(tmp_path, Rule((0.6,), (2, 1)))
    start = ThresholdPolicy((0.4, 0.8), (4, 4, 4))
    assert tune_thresholds(world, regions=1).policy.limits == ()
    tuned = tune_thresholds(world, [start], regions=1).policy
    assert tuned.actions == (2, 1)
    assert tuned.limits == pytest.approx((0.7,))


def test_best_fixed_is_the_best_of_all(tmp_path: Path) -> None:
    """On random worlds it is the arm whose own replay takes least; different worlds have different ones."""
    found = set()
    for seed in range(12):
        world = random_world(tmp_path, seed)
        totals = [replay(world, FixedPolicy(action)).latency_ms.sum() for action in range(len(world.arms))]
        assert best_fixed(world) == int(np.argmin(totals))
        found.add(best_fixed(world))
    assert len(found) > 1


def test_rules_side_by_side_take_what_they_take_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of many rules of unequal size has the latency that a replay of its policy has, however many are stepped together."""
    world = random_world(tmp_path, 0)
    rng = Random(1)
    rules = []
    for regions in (1, 2, 3, 4) * 5:
        limits = tuple(sorted(rng.uniform(0, 5) for _ in range(regions - 1)))
        rules.append(Rule(limits, tuple(rng.randrange(5) for _ in range(regions))))
    alone = [replay(world, ThresholdPolicy(rule.limits, rule.actions)).latency_ms.sum() for rule in rules]
    assert len({round(total, 6) for total in alone}) > 10
    np.testing.assert_allclose(latencies_ms(world, rules), alone, rtol=1e-12)
    monkeypatch.setattr(tuning, "_EPISODES", 50)
    np.testing.assert_allclose(latencies_ms(world, rules), alone, rtol=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_no_single_change_improves_a_tuned_rule(tmp_path: Path, seed: int) -> None:
    """It beats or equals every start and the best fixed arm, every change of one arm, and itself when tuned again."""
    world = random_world(tmp_path, seed)
    starts = [ThresholdPolicy((0.4, 0.8), (0, 1, 2)), ThresholdPolicy((1, 2, 3), (4, 3, 2, 1))]
    tuned = tune_thresholds(world, starts)
    rule = Rule(tuned.policy.limits, tuned.policy.actions)
    changed = [rule.with_action(i, action) for i, action in product(range(len(rule.actions)), range(5))]
    others = [Rule(start.limits, start.actions) for start in starts] + [Rule((), (best_fixed(world),)), *changed]
    assert latencies_ms(world, others).min() >= latencies_ms(world, [rule])[0] * (1 - 1e-9)
    assert tuned.latency_ms_per_token == pytest.approx(replay(world, tuned.policy).latency_ms_per_token, rel=1e-12)
    again = tune_thresholds(world, starts)
    assert (again.policy.limits, again.policy.actions) == (rule.limits, rule.actions)


def test_limits_between_equal_arms_go() -> None:
    """Of four regions with two arms, two regions stay."""
    assert Rule((1, 2, 3), (5, 5, 7, 7)).simplified() == Rule((2,), (5, 7))
    assert Rule((1, 2), (5, 7, 5)).simplified() == Rule((1, 2), (5, 7, 5))
    assert Rule((1,), (5, 5)).simplified() == Rule((), (5,))


HAND_MADE: list[Row] = [
    {"entropy": [0.01, 0.3, 1.0, 0.01], "match_a": [True, False, True, True], "entropy_a": [0.02, 0.3, 0.3, 5.0]},
    {"entropy": [4.0], "match_a": [True], "entropy_a": [0.3]},
]


def test_calibration_counts_by_hand(tmp_path: Path) -> None:
    """Five tokens; the first of each text has no token before it, so three are left for the target's entropy before."""
    traces = load_traces(write_traces(tmp_path / "t.parquet", HAND_MADE))
    shares = {row["entropy_low"]: row["share"] for row in calibrate.entropy_rows(traces) if row["share"]}
    assert shares == {0.0: 0.4, 0.2: 0.2, 0.8: 0.2, 3.2: 0.2}
    rows = calibrate.match_rows(traces)
    found = {(row["by"], row["entropy_low"]): (row["num_tokens"], row["match_rate"]) for row in rows if row["num_tokens"]}
    before = {(calibrate.BEFORE, 0.0): (1, 0.0), (calibrate.BEFORE, 0.2): (1, 1.0), (calibrate.BEFORE, 0.8): (1, 1.0)}
    own = {(calibrate.OWN, 0.0): (1, 1.0), (calibrate.OWN, 0.2): (3, 2 / 3), (calibrate.OWN, 3.2): (1, 1.0)}
    assert found == before | own
    assert all(row["match_rate"] is None for row in rows if not row["num_tokens"])


def test_calibrate_shows_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From traces and a profile alone, without models: the planted rule is printed, and the rows are those of the tables."""
    rule = Rule((0.2, 0.7), (2, 0, 1))
    traces = write_traces(tmp_path / "t.parquet", planted_rows(rule, texts=100))
    PROFILE.write(tmp_path / "profile.json")
    given = [f"--replay.traces={traces}", f"--replay.profile={tmp_path / 'profile.json'}", "--draft_length=1"]
    given.append("--threshold.students=[a, b, c]")
    calibrate.main([*given, f"--json={tmp_path / 'rows.json'}"])
    said = capsys.readouterr().out
    assert "threshold, tuned: c-1 below 0.2 nats, a-1 from 0.2, b-1 from 0.7" in said
    assert "threshold: a-1 below 0.4 nats, b-1 from 0.4, c-1 from 0.8" in said
    rows = json.loads((tmp_path / "rows.json").read_text())
    latency = {row["policy"]: row["latency_ms_per_token"] for row in rows if row["table"] == "thresholds"}
    assert latency["threshold, tuned"] == pytest.approx(5.5)
    assert min(latency["threshold"], latency["best fixed arm"]) > 6
    assert {row["table"] for row in rows} == {"entropy", "matches", "thresholds"}
    assert sum(row["share"] for row in rows if row["table"] == "entropy") == pytest.approx(1)


def test_without_entropies_there_is_nothing_to_calibrate(tmp_path: Path) -> None:
    """A recording made elsewhere may lack them: the command says so in a line, and the best fixed arm is found all the same."""
    rows: list[Row] = [{"accepted_a": [2, 1, 0, 0]} for _ in range(10)]
    traces = write_traces(tmp_path / "t.jsonl", rows)
    made_up_profile(10, a=1).write(tmp_path / "profile.json")
    with pytest.raises(UserError, match="has no column 'entropy'"):
        calibrate.main([f"--replay.traces={traces}", f"--replay.profile={tmp_path / 'profile.json'}", "--draft_length=2"])
    world = made_up_world(tmp_path / "w.parquet", rows, [Arm(NONE), Arm("a", 2)], made_up_profile(10, a=1))
    assert best_fixed(world) == 1
    with pytest.raises(UserError, match="entropy"):
        tune_thresholds(world)
