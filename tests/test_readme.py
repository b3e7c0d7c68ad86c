"""Whatever the README tells people to type works."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from dispatch_rl import bench, cli, doctor, evaluate, train
from dispatch_rl.config import TrainConfig

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()

SHORTER = {
    "train": shlex.split(
        "--ppo.total_steps=32 --ppo.n_steps=16 --ppo.batch_size=16 --ppo.n_epochs=1 "
        "--prompts.max_new_tokens=8 --validation_prompts=1 --evaluation.prompts=2"
    ),
    "evaluate": ["--prompts=2"],
    "bench": ["--num_prompts=2", "--prompts.max_new_tokens=8"],
    "doctor": [],
}
MAINS = {"train": train.main, "evaluate": evaluate.main, "bench": bench.main, "doctor": doctor.main}


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
    assert [name for name, *_ in commands()] == ["train", "evaluate", "bench", "doctor"]
    for name, *arguments in commands():
        MAINS[name]([*arguments, *SHORTER[name]])
    assert (tmp_path / "rows.json").is_file()


def test_the_python_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """As it stands."""
    (example,) = blocks("python")
    exec(compile(example, "README.md", "exec"), {})
    assert "|" in capsys.readouterr().out


def test_the_yaml_example_is_a_configuration(tmp_path: Path) -> None:
    """All keys exist, and the thresholds fit the students."""
    (example,) = blocks("yaml")
    (tmp_path / "mine.yaml").write_text(example)
    config = cli.read_config(TrainConfig, tmp_path / "mine.yaml")
    train.check(config)
    assert list(config.family.students) == list(yaml.safe_load(example)["family"]["students"])


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
