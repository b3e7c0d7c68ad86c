"""Run a W&B sweep file without W&B: ``python -m dispatch_rl.sweep configs/sweep.yaml``."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dispatch_rl import cli
from dispatch_rl.errors import UserError

if TYPE_CHECKING:
    from dispatch_rl.sweeping.file import SweepFile
    from dispatch_rl.sweeping.study import SweepStudy

_DESCRIPTION = (
    "Run a W&B sweep file without W&B, by Optuna. A sweep that was killed goes on when the command is given again; "
    "given twice at once, both processes share the runs."
)


@dataclass(frozen=True)
class SweepConfig:
    """How a sweep is run."""

    name: str | None = None
    """Name of the sweep; its folder is RUNS/NAME, with all its runs in it. null takes the name in the file, or that of the file."""
    runs: Path = Path("runs")
    """Folder of all runs and sweeps."""
    count: int | None = None
    """Runs in all, those included that are done already; null takes the file's run_cap, or all of a grid."""
    workers: int = 1
    """Runs at a time. The first run goes ahead alone until it has validated, since it may record what the others share."""
    seed: int = 0
    """Seed of what is drawn; a training's own seed is its option --seed."""
    track: Literal["wandb"] | None = None
    """The --track of every run, whatever the file says: null follows runs in their folders only, wandb also with W&B."""
    dry_run: bool = False
    """Print the commands of the runs and run nothing."""
    json: Path | None = None
    """Also write the rows of the table to this file."""

    def __post_init__(self) -> None:
        for key in ("count", "workers"):
            if getattr(self, key) is not None and getattr(self, key) < 1:
                raise UserError(f"{key}: {getattr(self, key)} is not at least 1")
        if self.seed < 0:
            raise UserError(f"seed: {self.seed} is below 0")
        if self.name is not None and self.name != folder_name(self.name):
            raise UserError(
                f"name: '{self.name}' is no name of a sweep: use letters, digits, '.', '_' and '-', and begin with a letter or a digit"
            )


def folder_name(name: str) -> str:
    """Return a name for a folder: ``My first sweep`` becomes ``My-first-sweep``."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("._-") or "sweep"


def main(argv: Sequence[str]) -> None:
    """Read the file, see to its runs, and show what came out."""
    parser = cli.make_parser(SweepConfig, "sweep", _DESCRIPTION)
    parser.add_argument("file", help="a sweep as W&B describes it, as configs/sweep.yaml")
    namespace = cli.parse(parser, argv)
    config = cli.build(SweepConfig, parser, namespace)
    cli.check_file("json", config.json)
    if find_spec("optuna") is None:
        raise UserError("optuna is not installed; pip install 'dispatch-rl[sweep]'")

    from dispatch_rl.sweeping.file import read_sweep
    from dispatch_rl.sweeping.study import SweepStudy

    sweep = read_sweep(Path(namespace.file))
    limit = runs_of(sweep, config.count)
    folder = config.runs / (config.name or folder_name(sweep.name))
    if config.dry_run:
        show_commands(SweepStudy(sweep, None, config.seed, limit), folder, config.track)
        return
    study = SweepStudy(sweep, folder, config.seed, limit)

    from dispatch_rl.sweeping.work import Worker

    try:
        Worker(study, folder, config.workers, config.track).work()
    finally:
        show_results(study, folder, config)
    if all(trial.state.name == "FAIL" for trial in study.trials()):
        raise UserError(f"all runs of {folder} failed; their logs are beside them")


def runs_of(sweep: "SweepFile", count: int | None) -> int:
    """Return how many runs a sweep has.

    Raises:
        UserError: There is no end to them.
    """
    limits = [limit for limit in (count, sweep.run_cap, sweep.grid_size) if limit is not None]
    if not limits:
        raise UserError(f"count: {sweep.method} has no end; give --count N, or run_cap in {sweep.path}")
    return min(limits)


def show_commands(study: "SweepStudy", folder: Path, track: str | None) -> None:
    """Print the commands of all runs, one per line; ``bayes`` has no results to go by, so its later ones will be others."""
    from dispatch_rl.sweeping.study import command_of

    for number in range(study.limit):
        print(shlex.join(command_of(study.sweep, number, study.values(study.draw()), folder, track)))


def show_results(study: "SweepStudy", folder: Path, config: SweepConfig) -> None:
    """Print the table, and write it and the figure."""
    from dispatch_rl.runs import write_json
    from dispatch_rl.sweeping import results

    found = results.rows(study, folder, config.track)
    for path in (folder / "sweep.json", config.json):
        if path is not None:
            write_json(path, found)
    if not found:
        return
    print(f"\n{results.table(found, study.sweep.parameters)}\n")
    written = [str(folder / "sweep.json")]
    if found[0]["value"] is not None:
        figure = folder / "parallel_coordinates.png"
        results.write_figure(figure, found, study.sweep.parameters)
        written.append(str(figure))
        print(f"best: {found[0]['run']}, a run like any other: evaluate it, export it, or train with its config.yaml")
    print(f"written: {', '.join(written)}")
    if any(row["state"] == results.UNFINISHED for row in found):
        print("some runs are unfinished; the same command goes on with them")


if __name__ == "__main__":
    cli.run(main)
