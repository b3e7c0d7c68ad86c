"""A study: ``python -m dispatch_rl.study configs/study-pocket.yaml``. Trains and compares everything, and writes down what came out."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dispatch_rl import cli
from dispatch_rl.config.study import StudyConfig
from dispatch_rl.errors import UserError

if TYPE_CHECKING:
    from dispatch_rl.decoding.families import Family
    from dispatch_rl.study.data import Data
    from dispatch_rl.study.plan import Study

_DESCRIPTION = (
    "Train learners over several seeds and temperatures, compare them with everything else in replay and live, take features and arms "
    "away from them, move them elsewhere, and write the tables. What is done already is kept: given again, the command goes on."
)


def main(argv: Sequence[str]) -> None:
    """Do a study, or what is left of it."""
    parser = cli.make_parser(StudyConfig, "study", _DESCRIPTION)
    parser.usage = "python -m dispatch_rl.study FILE [--config FILE] [--KEY VALUE ...]"
    words = [f"--config={argv[0]}", *argv[1:]] if argv and not argv[0].startswith("-") else list(argv)
    if not any(word.partition("=")[0] in ("--config", "--help", "-h") for word in words):
        raise UserError("study: name the file that describes it first, as configs/study-pocket.yaml")
    namespace = cli.parse(parser, words)
    config = cli.build(StudyConfig, parser, namespace)
    check(config)
    namespace.overwrite, namespace.json = False, None  # whoever repeats the study by its own configuration must not lose it
    conduct(config, parser.dump(namespace))


def check(config: StudyConfig) -> None:
    """Refuse what cannot work, before anything is loaded or written.

    Raises:
        UserError: Naming the key.
    """
    from dispatch_rl import train
    from dispatch_rl.replay.profile import Profile

    cli.check_file("json", config.json)
    if config.study.other_profile is not None:
        Profile.read(config.study.other_profile)
    train.check(config)
    for learner in (*config.study.learners, config.study.learner):
        config.taught_by(learner, config.seed)


def conduct(config: StudyConfig, config_yaml: str) -> list[dict[str, Any]]:
    """Record, train, compare and write; return all rows."""
    import torch

    from dispatch_rl.runs import environment, write_atomically, write_json
    from dispatch_rl.study.crew import train_all
    from dispatch_rl.study.plan import Study
    from dispatch_rl.study.writing import write

    folder = claimed(config)
    write_atomically(folder / "config.yaml", config_yaml)
    if config.family.threads is not None:
        torch.set_num_threads(config.family.threads)
    data, more, family = recorded(config, folder)
    study = Study(config, folder, data, more)
    if (elsewhere := study.elsewhere()) is not None:
        elsewhere.world("test")  # refuses a profile that lacks a student, before anything is trained
    write_json(folder / "environment.json", environment(study.base.world("test").profile.device))
    train_all(list(study.all_trials()), config.study.workers, config.family.threads or 1)
    rows = all_rows(study, family)
    written = write(study, rows)
    if config.json is not None:
        write_json(config.json, rows)
        written.append(config.json)
    print(f"written: {', '.join(map(str, written))}")
    return rows


def claimed(config: StudyConfig) -> Path:
    """Return the folder of the study, emptied if it is to be overwritten.

    Raises:
        UserError: It is there and is no study.
    """
    import shutil

    folder = config.studies / config.name
    if folder.exists() and any(folder.iterdir()):
        if not (folder / "config.yaml").is_file():
            raise UserError(f"name: {folder} exists and is not a study; choose another --name")
        if config.overwrite:
            shutil.rmtree(folder)
    return folder


def recorded(config: StudyConfig, folder: Path) -> "tuple[dict[float, Data], dict[float, Data], Family | None]":
    """Return texts and latencies of every temperature, made now if they are not there, and the models if live decoding needs them.

    The second time with the training texts of the bound, if there is to be one.
    """
    from dispatch_rl.decoding.families import load_family
    from dispatch_rl.progress import progress_bar
    from dispatch_rl.replay.sources import open_replay
    from dispatch_rl.study.data import Data

    live = bool(config.evaluation.prompts) and bool({"policies", "students"} & {*config.study.sections})
    family = load_family(config.family) if live else None
    found, more = {}, {}
    for temperature in config.study.temperatures:
        here = config.at(temperature)
        source = open_replay(here, family, progress_bar)
        found[temperature] = Data.of(source, folder / "profiles" / f"T{temperature:g}.json")
        if source.needs_family:
            family = source.family
        if "bound" in config.study.sections and config.replay.traces is None:
            count = max(config.study.bound_texts, config.recording.train_prompts)
            many = replace(here, recording=replace(config.recording, train_prompts=count))
            more[temperature] = found[temperature].with_training_texts(open_replay(many, family, progress_bar).traces("train"))
    return found, more, family if live else None


def all_rows(study: "Study", family: "Family | None") -> list[dict[str, Any]]:
    """Return the rows of all sections."""
    from dispatch_rl.study.ablation import arm_rows, feature_rows
    from dispatch_rl.study.adaptation import adaptation_rows
    from dispatch_rl.study.bound import bound_rows
    from dispatch_rl.study.policies import policy_rows, student_rows
    from dispatch_rl.study.remaining import regret_rows
    from dispatch_rl.study.transfer import transfer_rows

    sections: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "policies": lambda: policy_rows(study, family),
        "students": lambda: student_rows(study, family),
        "features": lambda: feature_rows(study),
        "arms": lambda: arm_rows(study),
        "transfer": lambda: transfer_rows(study),
        "adaptation": lambda: adaptation_rows(study),
        "regret": lambda: regret_rows(study),
        "bound": lambda: bound_rows(study),
    }
    return [row for name, make in sections.items() if name in study.config.study.sections for row in make()]
