"""Recordings that tests of exact replay share: two families under three samplings."""

from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from random import Random

import datasets
import pytest

from dispatch_rl.config import DecodingConfig, PromptConfig, RecordingConfig
from dispatch_rl.decoding.arms import LOOKUP, NONE, Arm, ArmTable
from dispatch_rl.decoding.families import Family
from dispatch_rl.decoding.sampling import Sampling
from dispatch_rl.decoding.session import DecodingSession
from dispatch_rl.replay.collector import record
from dispatch_rl.replay.recording import Recording
from dispatch_rl.replay.traces import load_traces
from dispatch_rl.replay.world import ReplayWorld
from tests.traces import made_up_profile

FAMILIES = ("pocket", "other")
SAMPLINGS = {"greedy": Sampling(), "cut": Sampling(0.6, top_k=20, top_p=0.9, seed=2**64 - 3), "coupled": Sampling(1.0, seed=7)}
TEXTS = {"pocket": 16, "other": 18}
LENGTHS = (1, 2, 3, 5, 8, 13)
SEEDS = {"pocket": 5, "other": 5}
"""Of prompts along which no choice of a target or student is decided by less than 2.7e-4 nats, ten times the rounding that was seen."""
ROUNDING = 2e-4
"""How far a float32 feature may move when a forward pass reads many texts at once; 2e-5 was seen, on margins of up to 20 nats."""


@dataclass(frozen=True)
class Recorded:
    """A family, and what was recorded of it under one sampling."""

    name: str
    family: Family
    config: DecodingConfig
    world: ReplayWorld

    def session(self, text: int) -> DecodingSession:
        """Begin to decode a recorded text."""
        traces = self.world.traces
        return DecodingSession(self.family, traces.prompt(text), traces.sampling(text), self.config.prompts.max_new_tokens)


def short_prompts(folder: Path) -> str:
    """Write prompts of 8 to 118 tokens, so that texts end on both sides of a context of 96, and at 128."""
    rng = Random(0)
    lines = [" ".join(rng.choice(["def", "x =", "1 + 2", "Problem:", "sum(a)"]) for _ in range(70))[: 8 + 10 * i] for i in range(24)]
    (folder / "short.txt").write_text("\n".join(lines))
    return str(folder / "short.txt")


def plain_arms(students: tuple[str, ...]) -> list[Arm]:
    """Return arms that draft so many tokens."""
    return [Arm(student, length) for student in (*students, LOOKUP) for length in LENGTHS]


def unsure_arms(students: tuple[str, ...]) -> list[Arm]:
    """Return arms that stop where a student is not sure of its choice."""
    limits: list[dict[str, float]] = [
        {"min_margin": 0.31},
        {"min_margin": 1.17},
        {"max_entropy": 0.83},
        {"min_margin": 0.11, "max_entropy": 2.21},
    ]
    limits += [{"hedge_below": 2.03}, {"hedge_below": 50.0}, {"min_margin": 0.29, "hedge_below": 1.51}]
    limits += [{"min_confidence": 0.37}, {"min_confidence": 0.71, "margin_scale": 0.9, "hedge_below": 1.03}]
    limits += [{"min_confidence": 0.23, "margin_scale": 3.1, "min_margin": 0.07}]
    return [Arm(student, length, **kept) for student in students for length in (5, 13) for kept in limits]


@pytest.fixture(scope="session", params=product(FAMILIES, SAMPLINGS), ids="-".join)
def recorded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """Every family under every sampling, recorded in batches that mix lengths and in two shards."""
    name, sampling = request.param
    folder = tmp_path_factory.mktemp("recorded")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
        family: Family = request.getfixturevalue(name)
        # Many tokens end a text, so that ends fall into drafts.
        family = replace(family, eos_token_ids=frozenset(range(0, family.vocab, 50)))
        source = "pocket" if name == "pocket" else short_prompts(folder)
        arms = ArmTable([*plain_arms(tuple(family.students)), *unsure_arms(tuple(family.students)), Arm(NONE)])
        config = DecodingConfig(arms=list(arms), prompts=PromptConfig(source=source, max_new_tokens=40), sampling=SAMPLINGS[sampling])
        settings = RecordingConfig(max_draft_length=max(LENGTHS), batch_size=7, shard_size=10)
        record(family, Recording(folder / "traces", config, settings, "train", SEEDS[name], TEXTS[name]))
    profile = made_up_profile(9.0, 0.5, 0.1, **dict.fromkeys(family.students, 2.0))
    return Recorded(name, family, config, ReplayWorld(load_traces(folder / "traces"), profile, arms))
