"""Where replay takes its traces and latencies from: what is given, what is in the cache, else made now."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch

from dispatch_rl.config import TrainConfig
from dispatch_rl.decoding.arms import Arm, ArmTable
from dispatch_rl.decoding.families import Family, device_name, find_device, load_family
from dispatch_rl.errors import UserError
from dispatch_rl.prompts import Split
from dispatch_rl.replay.collector import record
from dispatch_rl.replay.default_arms import default_arms
from dispatch_rl.replay.fingerprint import digest, family_fingerprint
from dispatch_rl.replay.profile import Profile
from dispatch_rl.replay.recording import Recording, check_sampling
from dispatch_rl.replay.schema import METADATA
from dispatch_rl.replay.traces import Traces, load_traces
from dispatch_rl.replay.world import ReplayWorld

Progress = Callable[[str, int], AbstractContextManager[Callable[..., None]]]
"""Given a title and a total, a context that yields ``update(done)``; :func:`dispatch_rl.progress.progress_bar` is one."""


@contextmanager
def _silent(title: str, total: int) -> Iterator[Callable[..., None]]:
    yield lambda done: None


class ReplaySource:
    """Traces and latencies of one configuration. Models are loaded only if something must be made with them.

    Raises:
        UserError: What is given is broken, or belongs to another family or device; or rejection sampling, which has no replay.
    """

    def __init__(self, config: TrainConfig, family: Family | None = None, progress: Progress = _silent) -> None:
        check_sampling(config.sampling)
        self.config = config
        self._family = family
        self._progress = progress
        self._read: dict[Split, Traces] = {}

    @cached_property
    def family(self) -> Family:
        """The models."""
        return load_family(self.config.family) if self._family is None else self._family

    @property
    def needs_family(self) -> bool:
        """Whether the models are loaded or have to be."""
        given = self.config.replay.traces is not None and self.config.replay.profile is not None
        return not given or self._family is not None or "family" in self.__dict__

    def world(self, part: Split, extra: Sequence[Arm] = ()) -> ReplayWorld:
        """Return one part of the prompts, ready to be replayed with the configured arms and ``extra`` ones behind them."""
        traces = self.traces(part)
        table = ArmTable([*self.arms, *(arm for arm in extra if arm not in self.arms)])
        return ReplayWorld(traces, self.profile, table, self.config.replay.read_along)

    @cached_property
    def arms(self) -> list[Arm]:
        """The configured arms; if none are given, those that the students of the recording call for."""
        config = self.config
        if config.replay.traces is None:
            return config.arm_list()
        traces = self.traces("train")
        unnamed = config.arms is None and config.draft_length is None
        if unnamed and config.from_elsewhere and traces.family is None:
            return default_arms(traces, self.profile)
        return config.arm_list(traces.students, bool(traces.lookup))

    def traces(self, part: Split) -> Traces:
        """Return the recording of one part, made now if it is not there; it is read once."""
        given = self.config.replay.traces
        if part not in self._read:
            self._read[part] = load_traces(self._recorded(part)) if given is None else load_traces(given, part)
        traces = self._read[part]
        if given is not None and self.needs_family and traces.family not in (None, family_fingerprint(self.family)):
            raise UserError(f"replay.traces: {given} was recorded with another family than the configured one; record again")
        return traces if given is None or part == "train" else _like(traces, self.traces("train"))

    def _recorded(self, part: Split) -> Path:
        recording = recording_of(self.config, part)
        wanted = recording.metadata(self.family)
        recording = recording_of(self.config, part, self.config.replay.cache / f"{part}-{digest(wanted)}")
        if not recording.finished:
            with self._progress(f"recording {part}", recording.num_prompts) as update:
                record(self.family, recording, progress=update)
        return recording.folder

    @cached_property
    def profile(self) -> Profile:
        """The latencies, measured now if they are not there."""
        given, traces = self.config.replay.profile, self.config.replay.traces
        if given is None and traces is not None and self.traces("train").family is None:
            raise UserError(f"replay.profile: {traces} does not tell which models it was recorded with; give the file of their latencies")
        path = self._measured() if given is None else given
        profile = Profile.read(path)
        if profile.family is not None:
            if self.config.family.threads is not None:
                torch.set_num_threads(self.config.family.threads)
            dtype = self.config.family.dtype_of(self.config.family.target)
            family = family_fingerprint(self.family) if self.needs_family else self.traces("train").family
            here = (device_name(find_device(self.config.family.device)), dtype) if self.needs_family else (None, None)
            profile.check_fits(path, family, *here)
        return profile

    def _measured(self) -> Path:
        from dispatch_rl.replay.measuring import measure

        config, family = self.config, self.family
        made_with = [family_fingerprint(family), family.device_name(), str(config.profiling), str(config.sampling), str(config.arm_list())]
        # This came later: profiles that were measured before it, all without graphs, keep their names.
        made_with += [] if family.capturer is None else ["graphs"]
        path = config.replay.cache / f"profile-{digest(made_with)}.json"
        if not path.exists():
            with self._progress("measuring latencies", config.profiling.rounds) as update:
                measure(family, config, config.profiling, update).write(path)
        return path


def _like(traces: Traces, others: Traces) -> Traces:
    """Return ``traces`` with its students in the order of ``others``, and as long drafts known, if they are the same students."""
    if {*traces.students} != {*others.students} or (traces.source / METADATA).is_file():
        return traces
    return replace(traces, students=others.students, max_draft_length=max(traces.max_draft_length, others.max_draft_length))


def recording_of(config: TrainConfig, part: Split, folder: Path = Path()) -> Recording:
    """Return the recording of one part of the prompts that a configuration describes, in ``folder``."""
    counts = {"train": config.recording.train_prompts, "validation": config.recording.validation_prompts}
    seeds = {"train": config.prompts.seed, "validation": config.seed, "test": config.evaluation.seed}
    return Recording(folder, config, config.recording, part, seeds[part], counts.get(part, config.recording.test_prompts))


def open_replay(config: TrainConfig, family: Family | None = None, progress: Progress = _silent) -> ReplaySource:
    """Return the traces and latencies of ``config``; ``family`` saves loading it again."""
    return ReplaySource(config, family, progress)
