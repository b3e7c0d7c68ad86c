"""The commands as a user meets them: quick help, one-line errors, runs that leave everything behind."""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from dispatch_rl import bench, calibrate, cli, doctor, evaluate, profile, record, study, train
from dispatch_rl.config import PPOConfig, TrainConfig
from dispatch_rl.config.study import StudyConfig
from dispatch_rl.errors import UserError
from dispatch_rl.sweeping.file import read_sweep
from tests.families import qwen2, tokenizer

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = ["train", "evaluate", "compare", "sweep", "record", "profile", "calibrate", "export", "generate", "doctor"]
COMMANDS += ["study", "pocket", "pocket.card"]
COMMANDS += ["bench decode", "bench replay", "bench endurance", "bench kernels"]

Main = Callable[[Sequence[str]], None]


def fails(main: Main, argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that must fail with status 2 and one line; return the line."""
    try:
        main(argv)
    except UserError as error:
        line = f"error: {error}\n"
    except SystemExit as stop:
        line = capsys.readouterr().err if stop.code == 2 else f"status {stop.code}"
    else:
        pytest.fail("the command did not fail")
    assert line.startswith("error: ")
    assert line.count("\n") == 1, line
    return line


@pytest.mark.parametrize("command", COMMANDS)
def test_help_needs_no_torch(command: str) -> None:
    """``--help`` describes every key and loads nothing heavy."""
    name, *rest = command.split()
    code = (
        "import sys, runpy; sys.argv = ['x', *sys.argv[1:]]\n"
        "try: runpy.run_module('dispatch_rl.' + sys.argv.pop(1), run_name='__main__')\n"
        "except SystemExit as stop: assert not stop.code, stop.code\n"
        "heavy = {'torch', 'transformers', 'stable_baselines3', 'datasets', 'matplotlib', 'wandb', 'optuna'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    result = subprocess.run([sys.executable, "-c", code, name, *rest, "--help"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "--config" in result.stdout


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_every_config_file_is_valid(path: Path) -> None:
    """A file in ``configs/`` has no key that its command does not know."""
    if path.name.endswith("-recipe.yaml"):
        from dispatch_rl.pocket.recipe import Recipe

        cli.read_config(Recipe, path)
    elif path.name == "sweep.yaml":
        read_sweep(path)
    elif path.name.startswith("study-"):
        study.check(cli.read_config(StudyConfig, path))
    else:
        train.check(cli.read_config(TrainConfig, path))


@pytest.mark.parametrize(
    ("options", "learner"),
    [
        ([], "policy_iteration"),
        (["--env=live"], "ppo"),
        (["--ppo.learning_rate=0.01"], "ppo"),
        (["--reward.acceptance_weight=0.5"], "ppo"),
        (["--ppo.learning_rate=0.01", "--algo=dqn"], "dqn"),
    ],
)
def test_who_learns_if_nobody_is_named(options: list[str], learner: str) -> None:
    """Policy iteration, unless it cannot or something is said about PPO."""
    parser = cli.make_parser(TrainConfig, "train", "")
    assert cli.build(TrainConfig, parser, cli.parse(parser, options)).algorithm == learner


def test_options_of_ppo_name_it() -> None:
    """Even where they are what they would be anyway, as one of a sweep's runs has them."""
    usual = ["--name=x", f"--ppo.learning_rate={PPOConfig().learning_rate}"]
    assert train.named_learner(None, usual) == "ppo"
    assert train.named_learner("dqn", usual) == "dqn"
    assert train.named_learner(None, ["--name=--ppo", "--dqn.gamma=0.9"]) is None


def test_options_win_over_files_wherever_they_stand(tmp_path: Path) -> None:
    """``--a.b=c`` before ``--config`` still wins; dashes, ``None`` and lists are understood as an agent writes them."""
    (tmp_path / "c.yaml").write_text("ppo: {learning_rate: 0.5, rollout_steps: 512}\nsampling: {top_k: 9}\n")
    argv = ["--ppo.learning-rate=0.25", f"--config={tmp_path}/c.yaml", "--sampling.top_k=None", "--ppo.net_arch=[32, 32]"]
    parser = cli.make_parser(TrainConfig, "train", "")
    config = cli.build(TrainConfig, parser, cli.parse(parser, argv))
    assert (config.ppo.learning_rate, config.ppo.rollout_steps, config.sampling.top_k) == (0.25, 512, None)
    assert config.ppo.net_arch == [32, 32]


def test_a_switch_needs_no_value() -> None:
    """``--overwrite`` is ``--overwrite=true``, before an option and at the end; a value that stands behind it counts."""
    parser = cli.make_parser(TrainConfig, "train", "")
    for argv, expected in ((["--overwrite"], True), (["--overwrite", "--name=x"], True), (["--overwrite", "false"], False)):
        assert cli.build(TrainConfig, parser, cli.parse(parser, argv)).overwrite is expected


def test_printed_configuration_is_a_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``--print_config`` prints a file that gives the same configuration."""
    with pytest.raises(SystemExit, match="0"):
        train.main(["--name=printed", "--print_config"])
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out)
    assert cli.read_config(TrainConfig, tmp_path / "printed.yaml") == TrainConfig(name="printed")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ppo: {lerning_rate: 0.1}", "lerning_rate'; did you mean learning_rate?"),
        ("ppoo: {learning_rate: 0.1}", "ppoo"),
        ("ppo: {rollout_steps: many}", "ppo.rollout_steps"),
        ("ppo: [", "config"),
        ("prompts: {max_new_tokens: 1}", "prompts.max_new_tokens: 1"),
        ("prompts: {kinds: [poems]}", "prompts.kinds: unknown poems"),
        ("sampling: {temperature: -1}", "sampling.temperature: -1"),
        ("sampling: {top_p: 1.5}", "sampling.top_p: 1.5"),
        ("sampling: {method: magic}", "sampling.method"),
        ("arms: [{student: small, length: 0}]", "the draft length of 'small' is 0; it must be at least 1"),
        ("arms: [{student: none, length: 2}]", "'none' drafts nothing"),
        ("arms: [{student: huge, length: 2}]", "unknown student 'huge'; the family has small, medium, large"),
        ("arms: []", "arms: the list is empty"),
        ("arms: [{student: small, length: 2}, {student: small, length: 2}]", "arms: listed twice: small-2"),
        ("arms: [{student: small, length: 2, max_entropy: 1}, {student: small, length: 2, max_entropy: 1.0000001}]", "twice: small-2-e1"),
        ("draft_length: 0", "draft_length: 0 is not at least 1"),
        ("threshold: {limits: [0.8, 0.4]}", "threshold.limits: [0.8, 0.4] must rise"),
        ("threshold: {limits: [0.4]}", "threshold.limits: 1 limits"),
        ("threshold: {students: [small, small, huge]}", "none drafts with 'huge'"),
        ("num_envs: 4\nppo: {rollout_steps: 64, batch_size: 128}", "ppo.batch_size: 128 is more than ppo.rollout_steps, 64"),
        ("algo: ppo\nnum_envs: 100", "ppo.rollout_steps: 16384 is not a multiple of num_envs, 100"),
        ("env: live\nalgo: dqn", "algo: live training is for ppo"),
        ("algo: qrdqn\ninit: runs/x", "init: qrdqn cannot start from the policy of another run"),
        ("dqn: {buffer_size: 0}", "dqn.buffer_size: 0"),
        ("qrdqn: {buffer_size: 0}", "qrdqn.buffer_size: 0"),
        ("qrdqn: {n_quantiles: 0}", "qrdqn.n_quantiles: 0"),
        ("sampling: {temperature: 1, method: rejection}", "sampling.method: with rejection sampling the text depends on the drafts"),
        ("replay: {traces: /no/such/traces}", "replay.traces: there is no recording /no/such/traces"),
        ("replay: {profile: /no/such/profile.json}", "replay.profile: there is no file /no/such/profile.json"),
        ("recording: {max_draft_length: 300}", "recording.max_draft_length: 300"),
        ("recording: {shard_size: 0}", "recording.shard_size: 0"),
        ("profiling: {rounds: 1}", "profiling.rounds: 1"),
        ("profiling: {seed: -1}", "profiling.seed: -1 is not in 0 ... 2**32 - 1"),
        ("validate_every: 0", "validate_every: 0"),
        ("ppo: {batch_size: 0}", "ppo.batch_size"),
        ("ppo: {batch_size: 1}", "ppo.batch_size: 1 is not at least 2"),
        ("seed: -1", "seed: -1 is not in 0 ... 2**32 - 1"),
        ("evaluation: {seed: 4294967296}", "evaluation.seed: 4294967296 is not in 0 ... 2**32 - 1"),
        ("env: live\nevaluation: {prompts: 0}", "evaluation.prompts: 0 leaves a live training nothing to be compared on"),
        ("algo: policy_iteration\nreward: {acceptance_weight: 1}", "reward.acceptance_weight: policy_iteration minimises latency itself"),
        ("threshold: {students: [small, medium, large, small]}", "threshold.limits: 4 students need 3 limits"),
        ("ppo: {learning_rate: -1}", "ppo.learning_rate"),
        ("ppo: {gamma: 1.5}", "ppo.gamma"),
        ("reward: {clip: 0}", "reward.clip: 0"),
        ("evaluation: {prompts: 1}", "evaluation.prompts: 1"),
        ("family: {target: {path: /no/such/folder}}", "family.target.path: there is no folder /no/such/folder"),
        ("family: {students: {none: {path: 'pocket:small'}}}", "the name 'none' is reserved"),
        ("family: {threads: 0}", "family.threads: 0"),
        ("family: {device: toaster}", "family.device: 'toaster'"),
        ("prompts: {source: /no/such/file.jsonl}", "prompts.source: there is no file /no/such/file.jsonl"),
        ("prompts: {source: poems.doc}", "prompts.source: poems.doc is none of pocket"),
        ("name: ../escape", "name: '../escape'"),
    ],
)
def test_bad_configurations_are_one_line(text: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An unknown key, a wrong type, a value out of range or a missing folder: one line that names it, status 2, nothing written."""
    (tmp_path / "config.yaml").write_text(text)
    line = fails(train.main, [f"--config={tmp_path}/config.yaml", f"--runs={tmp_path}/runs"], capsys)
    assert expected in line
    assert not list(tmp_path.glob("runs/*/metrics.jsonl"))


@pytest.mark.parametrize(
    ("main", "options", "expected"),
    [
        (profile.main, ["--output={folder}"], "output: {folder} is a folder; give the name of a file"),
        (calibrate.main, ["--json={folder}"], "json: {folder} is a folder; give the name of a file"),
        (record.main, ["--output={file}", "--part=test", "--num_prompts=1"], "{file}"),
    ],
)
def test_what_cannot_be_written_is_one_line(
    main: Main, options: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder where a file should be, and a file where a folder should be."""
    (tmp_path / "file").touch()
    places = {"folder": tmp_path, "file": tmp_path / "file"}
    with pytest.raises(SystemExit, match="2"):
        cli.run(main, [option.format(**places) for option in options])
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: {expected.format(**places)}")


def test_a_missing_configuration_file_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """So is a file that is not there."""
    assert "nowhere.yaml" in fails(train.main, ["--config=nowhere.yaml"], capsys)


def test_a_mistyped_option_suggests_the_right_one(capsys: pytest.CaptureFixture[str]) -> None:
    """On the command line too."""
    assert "did you mean ppo.learning_rate?" in fails(train.main, ["--ppo.lerning_rate=1"], capsys)


def test_wrong_families_are_refused(tmp_path: Path, other_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A corrupt weight file, a student with another tokenizer, missing tensors: one line each that names the student."""
    good = f"--family.target.path={other_folder}/target"

    def line(folder: Path) -> str:
        return fails(doctor.main, [good, f"--family.students={{bad: {{path: {folder}}}}}"], capsys)

    corrupt = tmp_path / "corrupt"
    qwen2(384, 16, 1, seed=0).save_pretrained(corrupt)
    tokenizer().save_pretrained(corrupt)
    weights = corrupt / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "family.students.bad.path" in line(corrupt)

    stranger = tmp_path / "stranger"
    qwen2(384, 16, 1, seed=0).save_pretrained(stranger)
    tokenizer(texts=("entirely other words make other merges, wherefore", "zzz yyy xxx www")).save_pretrained(stranger)
    assert "family.students.bad: its tokenizer differs from the target's" in line(stranger)

    empty = tmp_path / "empty"
    empty.mkdir()
    assert "family.students.bad.path" in line(empty)


def test_runs_are_not_overwritten_by_accident(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A second run of a name needs ``--overwrite``; a folder that is no run is never touched."""
    run = tmp_path / "runs" / "pocket"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("name: pocket\n")
    assert "--overwrite=true" in fails(train.main, [f"--runs={tmp_path}/runs"], capsys)
    (run / "config.yaml").unlink()
    (run / "thesis.tex").write_text("years of work")
    assert "is not a run" in fails(train.main, [f"--runs={tmp_path}/runs", "--overwrite=true"], capsys)
    assert (run / "thesis.tex").read_text() == "years of work"


def test_evaluate_needs_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder without a run and no folder at all are one line each."""
    assert "is not the folder of a run" in fails(evaluate.main, [str(tmp_path)], capsys)
    assert "run" in fails(evaluate.main, [], capsys)


def test_unknown_benchmarks_and_students_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """``bench`` names what there is."""
    assert "there are decode, endurance, replay, kernels" in fails(bench.main, ["sorting"], capsys)
    assert "the family has no 'huge'" in fails(bench.main, ["decode", "--student=huge"], capsys)


def test_doctor_finds_the_pocket_family_well(capsys: pytest.CaptureFixture[str]) -> None:
    """Versions, devices, and a lossless family."""
    doctor.main([])
    output = capsys.readouterr().out
    assert "same text with" in output
    assert "all is well" in output


def test_bench_decode_compares_with_transformers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both decoders emit the same tokens, and the rows say how fast each was."""
    argv = ["decode", "--num_prompts=2", "--prompts.max_new_tokens=16", "--draft_length=3", f"--json={tmp_path}/rows.json"]
    bench.main(argv)
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["policy"] for row in rows] == ["dispatch-rl small-3", "transformers assisted small-3"]
    assert rows[1]["speedup"] == 1
    assert "the two emit the same tokens" in capsys.readouterr().out
