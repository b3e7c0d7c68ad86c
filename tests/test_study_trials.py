"""The policies of a study: trained once, by as many processes as one likes, and gone on with after a kill."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from dispatch_rl.config import PolicyIterationConfig, PPOConfig, ReplayConfig, TrainConfig
from dispatch_rl.decoding.arms import NONE, Arm
from dispatch_rl.policies.fixed import FixedPolicy
from dispatch_rl.policies.network import NetworkPolicy
from dispatch_rl.replay.running import replay
from dispatch_rl.replay.sources import open_replay
from dispatch_rl.selection import Selection
from dispatch_rl.study.crew import train_all
from dispatch_rl.study.data import Data
from dispatch_rl.study.measuring import over_seeds
from dispatch_rl.study.plan import EVERYTHING, feature_groups
from dispatch_rl.study.trials import Trial
from tests.traces import made_up_profile, random_rows, write_traces

CONFIG = TrainConfig(
    algo="policy_iteration",
    arms=[Arm("a", 2), Arm("b", 4), Arm(NONE)],
    policy_iteration=PolicyIterationConfig(iterations=3, states=64, n_epochs=3, net_arch=[8]),
    ppo=PPOConfig(total_steps=256, rollout_steps=64, batch_size=32),
    num_envs=8,
    validate_every=64,
)


def trials(folder: Path, **more: Any) -> list[Trial]:
    """Return three small trials on made-up texts, half of them called code."""
    rows = [{**row, "kind": "code" if i // 10 % 2 else "prose"} for i, row in enumerate(random_rows(Random(3), 60, longest=20))]
    recording = write_traces(folder / "recording.jsonl", rows)
    made_up_profile(10, a=1, b=3).write(folder / "profile.json")
    config = replace(CONFIG, replay=ReplayConfig(recording, folder / "profile.json"))
    data = replace(Data.of(open_replay(config), folder / "used.json"), **more)
    teaching = [replace(config, seed=0), replace(config, seed=1), replace(config, algo="ppo")]
    return [Trial("made-up", taught, data, folder / "study") for taught in teaching]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what ``datasets`` makes of the files."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def weights(found: list[Trial]) -> list[bytes]:
    """Return the policies as they are on disk."""
    return [trial.path.read_bytes() for trial in found]


def test_two_processes_train_the_policies_of_one(tmp_path: Path) -> None:
    """To the last bit; equal trials are trained once, and nothing is left but policies and their metrics."""
    alone, together = (trials(tmp_path / name) for name in ("alone", "together"))
    train_all([*alone, *alone], 1, 1)
    train_all(together, 2, 1)
    assert weights(alone) == weights(together)
    assert len(list(alone[0].path.parent.iterdir())) == 2 * len(alone)
    assert not list((tmp_path / "alone" / "study" / "training").iterdir())


@pytest.mark.parametrize("number", [0, 2], ids=["policy_iteration", "ppo"])
def test_a_killed_training_goes_on_as_if_nothing_had_been(tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind its last validation, bit for bit."""
    whole, killed = trials(tmp_path / "whole")[number], trials(tmp_path / "killed")[number]
    whole.train(lambda step, note: None)
    consider, done = Selection.consider, list[int]()

    def watched(self: Selection, step: int, policy: Any) -> float:
        if len(done) == 2 and not resumed:
            raise KeyboardInterrupt
        done.append(step)
        return consider(self, step, policy)

    resumed = False
    monkeypatch.setattr(Selection, "consider", watched)
    with pytest.raises(KeyboardInterrupt):
        killed.train(lambda step, note: None)
    assert not killed.done
    resumed = True
    train_all([killed], 1, 1)
    assert done == sorted(set(done))  # nothing was learned twice
    assert weights([killed]) == weights([whole])


def test_trials_of_other_conditions_have_other_names(tmp_path: Path) -> None:
    """Learner, seed, arms, texts, hidden features and latencies tell them apart; what does not matter does not."""
    first = trials(tmp_path)[0]
    data, config = first.data, first.config
    made_up_profile(20, a=1, b=3).write(tmp_path / "slow.json")
    others = [
        replace(first, config=replace(config, seed=5)),
        replace(first, config=replace(config, policy_iteration=replace(config.policy_iteration, states=65))),
        replace(first, data=replace(data, arms=data.arms[:2])),
        replace(first, data=replace(data, kinds=("code",))),
        replace(first, data=replace(data, hidden=("entropy",))),
        replace(first, data=data.with_profile(tmp_path / "slow.json")),
    ]
    assert len({trial.name for trial in [first, *others]}) == len(others) + 1
    assert replace(first, config=replace(config, name="other")).name == first.name


def test_a_hidden_feature_changes_no_decision(tmp_path: Path) -> None:
    """Whatever it is, though the policy was trained on texts where it is random."""
    hidden = ("entropy", "lag_a")
    trial = trials(tmp_path, hidden=hidden)[0]
    trial.train(lambda step, note: None)
    trained, world = trial.policy(), trial.data.world("test")
    assert isinstance(trained, NetworkPolicy)
    rng = np.random.default_rng(0)
    # On texts as random as these a fixed arm may be kept, which looks at nothing; but the hidden layers are there.
    (*weights, last), biases = trained.layers()
    policy = NetworkPolicy(trained.tensors()["scale"], [*weights, rng.normal(size=last.shape).astype(np.float32)], biases)
    seen = rng.uniform(0, 1, (200, len(world.features))).astype(np.float32)
    names = [feature.name for feature in world.features]
    changed = seen.copy()
    changed[:, [names.index(name) for name in hidden]] = rng.uniform(0, 200, (200, 2))
    assert np.array_equal(policy.batch_logits(changed), policy.batch_logits(seen))
    changed[:, names.index("margin")] += 5
    assert not np.array_equal(policy.batch_logits(changed), policy.batch_logits(seen))


def test_one_kind_of_text(tmp_path: Path) -> None:
    """A world of one kind replays those texts alone."""
    data = trials(tmp_path)[0].data
    assert data.kinds_there() == ["code", "prose"]
    counts: Mapping[str, int] = {kind: len(replace(data, kinds=(kind,)).world("train").texts) for kind in ("code", "prose")}
    assert all(counts.values())
    assert sum(counts.values()) == len(data.world("train").texts)
    kinds = replace(data, kinds=("code",)).world("train")
    assert {kinds.traces.kind(int(text)) for text in kinds.texts} == {"code"}


def test_a_learner_over_seeds_is_the_mean_of_its_policies(tmp_path: Path) -> None:
    """Text by text; its rounds are all of theirs."""
    world = trials(tmp_path)[0].data.world("test")
    runs = [replay(world, FixedPolicy(action)) for action in (0, 1)]
    result, each = over_seeds(world, [FixedPolicy(0), FixedPolicy(1)])
    assert result.times_ms == pytest.approx((runs[0].latency_ms + runs[1].latency_ms) / 2)
    assert each == [run.latency_ms_per_token for run in runs]
    assert len(result.rounds) == len(runs[0].rounds) + len(runs[1].rounds)


def test_every_feature_is_in_one_group(tmp_path: Path) -> None:
    """A feature that nobody has thought of has a group of its own."""
    names = [feature.name for feature in trials(tmp_path)[0].data.world("test").features] + ["moon_phase"]
    groups = feature_groups(names)
    assert groups.pop(EVERYTHING) == tuple(names)
    assert sorted(name for members in groups.values() for name in members) == sorted(names)
    assert groups["moon_phase"] == ("moon_phase",)
    assert groups["lags"] == ("lag_a", "lag_b")


def test_who_reads_along_is_as_configured(tmp_path: Path) -> None:
    """A study replays a recording without entropies with the share of its configuration, and tells its trials apart by it."""
    rows = [{key: row[key] for key in ("match_a", "match_b")} for row in random_rows(Random(3), 30, longest=20, lookup=False)]
    recording = write_traces(tmp_path / "recording.jsonl", rows)
    made_up_profile(10, a=1, b=3).write(tmp_path / "profile.json")
    along, names = [], set()
    for share in (0.01, 0.1, 1.0):
        config = replace(CONFIG, replay=ReplayConfig(recording, tmp_path / "profile.json", read_along=share))
        data = Data.of(open_replay(config), tmp_path / "used.json")
        hindsight = data.world("train").hindsight
        assert hindsight is not None
        along.append(hindsight.along.tolist())
        names.add(Trial("made-up", config, data, tmp_path).name)
    assert along == [[], [0], [0, 1]]
    assert len(names) == 3
