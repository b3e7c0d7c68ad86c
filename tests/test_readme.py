"""Whatever the README tells people to type works."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from dispatch_rl import bench, calibrate, cli, compare, doctor, evaluate, export, generate, profile, record, study, sweep, train
from dispatch_rl.config import TrainConfig
from dispatch_rl.decoding.arms import Arm, ArmTable
from dispatch_rl.policies.fixed import FixedPolicy
from dispatch_rl.replay.profile import Profile
from dispatch_rl.replay.running import replay
from dispatch_rl.replay.traces import load_traces
from dispatch_rl.replay.world import ReplayWorld

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()

TINY = "--recording.train_prompts=8 --recording.validation_prompts=4 --recording.test_prompts=4 --recording.max_draft_length=8"
TINY += " --prompts.max_new_tokens=12 --profiling.rounds=100 --profiling.longest_context=128"
ITERATION = "--policy_iteration.iterations=1 --policy_iteration.states=32 --policy_iteration.n_epochs=1"
TINY_STUDY = "--study.temperatures=[0.6] --study.seeds=1 --study.further_seeds=1 --study.learners=[policy_iteration] --study.workers=1"
TINY_STUDY += " --study.sections=[policies,regret] --evaluation.prompts=2"
SHORTER = [
    ("train", f"{TINY} --ppo.total_steps=64 --ppo.rollout_steps=32 --num_envs=8 --ppo.n_epochs=1 --evaluation.prompts=2"),
    ("train", f"{TINY} --recording.max_draft_length=16 {ITERATION} --evaluation.prompts=2"),
    ("evaluate", "--prompts=2"),
    ("compare", ""),
    ("study", f"{TINY} --recording.max_draft_length=16 {ITERATION} {TINY_STUDY}"),
    ("sweep", "--dry_run"),
    ("export", ""),
    ("generate", "--max_new_tokens=8"),
    ("calibrate", TINY),
    ("record", TINY),
    ("record", f"{TINY} --num_actors=1"),
    ("profile", TINY),
    ("bench replay", "--tokens=12800 --seconds=0.1 --ppo_envs=8 --ppo_steps=512 --batch_size=128 --repeats=2"),
    ("bench decode", "--num_prompts=2 --prompts.max_new_tokens=8"),
    ("doctor", ""),
]
MAINS = {
    "train": train.main,
    "evaluate": evaluate.main,
    "compare": compare.main,
    "study": study.main,
    "sweep": sweep.main,
    "export": export.main,
    "generate": generate.main,
    "calibrate": calibrate.main,
    "record": record.main,
    "profile": profile.main,
    "bench": bench.main,
    "doctor": doctor.main,
}


def blocks(language: str) -> list[str]:
    """Return the code blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands() -> list[list[str]]:
    """Return the commands of this package, each as [name, arguments...]."""
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    typed = [shlex.split(line, comments=True) for line in lines if line.startswith("python -m dispatch_rl.")]
    return [[words[2].removeprefix("dispatch_rl."), *words[3:]] for words in typed]


def test_the_commands_run_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the README's order and in an empty folder with the configs beside it; only shorter."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    told = [" ".join(words[:2]) if words[0] == "bench" else words[0] for words in commands()]
    assert told == [name for name, _ in SHORTER]
    for (_, shorter), (name, *arguments) in zip(SHORTER, commands(), strict=True):
        if "ray" not in arguments:  # tests/test_ray.py runs it, in a process of its own
            MAINS[name]([*arguments, *shlex.split(shorter)])
    assert (tmp_path / "rows.json").is_file()
    decoding, _ = blocks("python")
    exec(compile(decoding, "README.md", "exec"), {})


def test_the_environment_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """As it stands."""
    _, example = blocks("python")
    exec(compile(example, "README.md", "exec"), {})
    assert "|" in capsys.readouterr().out


def test_the_yaml_example_is_a_configuration(tmp_path: Path) -> None:
    """All keys exist, and the thresholds fit the students."""
    (example,) = blocks("yaml")
    (tmp_path / "mine.yaml").write_text(example)
    config = cli.read_config(TrainConfig, tmp_path / "mine.yaml")
    train.check(config)
    assert list(config.family.students) == list(yaml.safe_load(example)["family"]["students"])


def test_the_json_examples_are_traces_and_costs(tmp_path: Path) -> None:
    """They load together, with the arms that the trace's drafters call for."""
    trace, costs = blocks("json")
    (tmp_path / "trace.jsonl").write_text(trace)
    (tmp_path / "costs.json").write_text(costs)
    traces = load_traces(tmp_path / "trace.jsonl")
    world = ReplayWorld(traces, Profile.read(tmp_path / "costs.json"), ArmTable([Arm("ngram", 2), Arm("eagle", 4)]))
    # By hand: at position 0 eagle-4 gets two tokens and the target's one, the last round one more.
    assert replay(world, FixedPolicy(1)).rounds.emitted.tolist() == [3, 1]


def test_make_verbs_exist() -> None:
    """Every ``make`` verb that the README or CONTRIBUTING names is in the Makefile."""
    text = README + (ROOT / "CONTRIBUTING.md").read_text()
    makefile = (ROOT / "Makefile").read_text()
    for verb in set(re.findall(r"`?make (\w+)", text)):
        assert re.search(rf"^{verb}:", makefile, re.MULTILINE), verb


def test_links_lead_somewhere() -> None:
    """Relative links point to files that exist."""
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
