"""Weights & Biases, online or offline: never a prompt, a long wait or a pickle."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from ssl import SSLError
from threading import Thread
from typing import TYPE_CHECKING, Any, Literal
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

from dispatch_rl.config import TrackingConfig
from dispatch_rl.errors import UserError, first_line
from dispatch_rl.runs import RunFolder, write_json
from dispatch_rl.tracking.base import Row
from dispatch_rl.tracking.lines import told

if TYPE_CHECKING:
    from wandb import Run

Mode = Literal["online", "offline", "off"]

PROJECT = "dispatch-rl"
_ANSWER_S = 2.0
"""How long a host may take to say anything at the end of a run."""
_MODES: dict[str, Mode] = {"online": "online", "run": "online", "offline": "offline", "dryrun": "offline", "disabled": "off", "off": "off"}


def wanted_mode(config: TrackingConfig) -> Mode:
    """Return how W&B is to be used: as configured, else as ``WANDB_MODE`` says, else online.

    Raises:
        UserError: ``WANDB_MODE`` says something unknown.
    """
    if config.mode is not None:
        return config.mode
    said = os.environ.get("WANDB_MODE") or "online"
    if said not in _MODES:
        raise UserError(f"WANDB_MODE: '{said}' is none of {', '.join(_MODES)}")
    return _MODES[said]


@dataclass(frozen=True)
class Identity:
    """Which W&B run a run's folder belongs to; kept in the folder, so that a resumed run goes on as the same."""

    id: str
    project: str
    entity: str | None

    @classmethod
    def read(cls, path: Path) -> "Identity | None":
        """Return what is kept in ``path``; None if nothing is, or nothing readable."""
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))["wandb"]
            return cls(str(kept["id"]), str(kept["project"]), kept["entity"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, path: Path) -> None:
        """Keep it in ``path``."""
        write_json(path, {"wandb": {"id": self.id, "project": self.project, "entity": self.entity}})


def begin(folder: RunFolder, name: str, settings: TrackingConfig, config: Mapping[str, Any], mode: Mode) -> "WandbTracker":
    """Begin the W&B run of a folder, or go on with it, and say in one line where it is.

    Args:
        folder: The run's folder; W&B's files go there, too.
        name: What the run is called.
        settings: Project, group and so on.
        config: Its configuration by dotted key.
        mode: online is tried for ``init_timeout_s``, then it is offline.
    """
    # Else wandb reports that a host does not answer, to that host, and waits 20 s for the answer when Python ends.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    # Silent, wandb never asks for a key, not even on a terminal.
    silent = wandb.Settings(
        silent=True,
        init_timeout=settings.init_timeout_s,
        finish_timeout=settings.finish_timeout_s,
        finish_timeout_raises=True,
        save_code=False,
    )
    wandb.setup(silent)
    kept = Identity.read(folder.tracking)
    project = settings.project or os.environ.get("WANDB_PROJECT") or PROJECT
    options: dict[str, Any] = {
        "project": project if kept is None else kept.project,
        "entity": settings.entity if kept is None else kept.entity,
        "id": None if kept is None else kept.id,
        "name": name,
        "group": settings.group,
        "tags": settings.tags or None,
        "config": dict(config),
        "dir": str(folder.path),
        "settings": silent,
        "reinit": "create_new",
    }
    run, why = _init(options, mode)
    Identity(run.id, run.project, run.entity or settings.entity).write(folder.tracking)
    where = run.settings.sync_dir
    print(f"W&B: {run.url}" if run.url else f"W&B: offline ({why}); `wandb sync {where}` uploads it")
    return WandbTracker(run, folder)


def _init(options: dict[str, Any], mode: Mode) -> "tuple[Run, str]":
    """Return the W&B run, and why it is offline, if it is."""
    import wandb

    why = "as asked for"
    if mode == "online":
        try:
            return wandb.init(**options, mode="online", resume=None if options["id"] is None else "allow"), why
        except Exception as error:  # what a missing key, a wrong address or a silent host raises differs by release
            why = first_line(error).rstrip(".")
            why = "no answer" if why == "<no message>" else why
            # The run that could not begin still holds its id, which a resumed run and a sweep's agent insist on.
            wandb.teardown()
            wandb.setup(options["settings"])
    return wandb.init(**options, mode="offline"), why


class WandbTracker:
    """One W&B run.

    Args:
        run: The run, begun.
        folder: The folder of our run.
    """

    title = "W&B"

    def __init__(self, run: "Run", folder: RunFolder) -> None:
        self._run = run
        self._folder = folder
        self._summary: dict[str, float] = {}

    def rewind(self, step: int) -> None:
        # After a kill W&B may lack the last rows. Offline it has none of them, so that the newest part alone can be synced.
        for before, values in told(self._folder):
            self.log(before, values)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._log(step, values)

    def summarise(self, values: Mapping[str, float]) -> None:
        self._summary |= values

    def table(self, step: int, name: str, rows: Sequence[Row]) -> None:
        import wandb

        columns: list[str | int] = list(dict.fromkeys(key for row in rows for key in row))
        data = [[_cell(row.get(str(column))) for column in columns] for row in rows]
        with _staged_below(self._folder.path / "wandb"):
            self._log(step, {name: wandb.Table(columns=columns, data=data)})

    def image(self, step: int, name: str, png: bytes) -> None:
        import wandb
        from PIL import Image

        self._log(step, {name: wandb.Image(Image.open(BytesIO(png)))})

    def bundle(self, name: str, folder: Path, about: Row) -> None:
        import wandb

        # wandb would ask a host that has gone for 19 s.
        if not self._run.offline and not _answers(self._run.settings.base_url):
            raise ConnectionError(f"its host does not answer any more; {self._remedy()}")
        with _staged_below(self._folder.path / "wandb"):
            artifact = wandb.Artifact(name, type="model", metadata=dict(about))
            artifact.add_dir(str(folder))
            self._run.log_artifact(artifact)

    def finish(self, failed: bool) -> None:
        import wandb

        try:
            # The last row is kept open for further values, and would overwrite the summary when it is closed.
            self._run.log({}, commit=True)
            self._run.summary.update(self._summary)
            self._run.finish(exit_code=int(failed))
        except TimeoutError as error:
            raise TimeoutError(f"its host did not take everything in time; {self._remedy()}") from error
        except Exception:
            # Its service has gone; else wandb would print a traceback about that when Python ends.
            with suppress(Exception):
                wandb.teardown()
            raise

    def _remedy(self) -> str:
        return f"`wandb sync {self._run.settings.sync_dir}` uploads what it lacks"

    def _log(self, step: int, values: Mapping[str, Any]) -> None:
        # W&B takes no earlier steps than its last, and needs none: a training goes on bit for bit.
        if step >= self._run.step:
            self._run.log(dict(values), step=step)


def _cell(value: Any) -> Any:
    """Return what a cell of a table can hold."""
    return json.dumps(value) if isinstance(value, (dict, list)) else value


@contextmanager
def _staged_below(folder: Path) -> Iterator[None]:
    """Let wandb copy an artifact's files to ``folder``, not to the user's home: an offline run is synced from there, perhaps much later."""
    given = os.environ.get("WANDB_DATA_DIR")
    os.environ["WANDB_DATA_DIR"] = given or str(folder.resolve())
    try:
        yield
    finally:
        if given is None:
            del os.environ["WANDB_DATA_DIR"]


def _answers(url: str) -> bool:
    """Return whether a host says anything at all, be it that the page does not exist."""
    heard: list[bool] = []

    def ask() -> None:
        try:
            urlopen(url, timeout=_ANSWER_S).close()
        except (OSError, ValueError) as error:
            heard.append(isinstance(error, HTTPError) or (isinstance(error, URLError) and isinstance(error.reason, SSLError)))
        else:
            heard.append(True)

    # In a thread, as finding the host's address knows no time limit.
    thread = Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_ANSWER_S)
    return heard == [True]
