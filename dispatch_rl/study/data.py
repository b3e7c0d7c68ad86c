"""Where the texts and latencies of a study are, and the worlds that are made of them."""

import copy
import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dispatch_rl.config.replay import READ_ALONG
from dispatch_rl.decoding.arms import Arm, ArmTable
from dispatch_rl.decoding.features import Feature
from dispatch_rl.errors import UserError
from dispatch_rl.prompts import Split
from dispatch_rl.replay.fingerprint import digest
from dispatch_rl.replay.profile import Profile
from dispatch_rl.replay.sources import ReplaySource
from dispatch_rl.replay.traces import Traces, load_traces
from dispatch_rl.replay.world import Ints, ReplayWorld

PARTS: tuple[Split, ...] = ("train", "validation", "test")

_HIDING = 1e30
"""What a network divides a hidden feature by: nothing is left of it, whatever it is."""


@dataclass(frozen=True)
class Data:
    """The recording of one temperature, and latencies."""

    temperature: float
    traces: Mapping[Split, tuple[Path, Split | None]]
    """Where each part is: a recording, and which part of it; None means all of it."""
    profile: Path
    arms: tuple[Arm, ...]
    """What is chosen from."""
    fingerprint: str
    """Hash of all that was recorded and measured."""
    kinds: tuple[str, ...] | None = None
    """The only kinds of text; None means all."""
    hidden: tuple[str, ...] = ()
    """Features that are held constant."""
    texts: int | None = None
    """Only so many training texts, the first ones; None means all."""
    read_along: float = READ_ALONG
    """As in :class:`~dispatch_rl.config.ReplayConfig`."""

    @classmethod
    def of(cls, source: ReplaySource, profile: Path) -> "Data":
        """Return what ``source`` has, which is made now if it is not there; the latencies are written to ``profile``."""
        config = source.config
        source.profile.write(profile)
        given, read = config.replay.traces, {part: source.traces(part) for part in PARTS}
        students = {traces.students for traces in read.values()}
        if len(students) > 1:
            raise UserError(f"replay.traces: the parts of {given} have different students")
        where: dict[Split, tuple[Path, Split | None]] = {p: (t.source, None) if given is None else (given, p) for p, t in read.items()}
        fingerprint = digest([*(_content(traces) for traces in read.values()), profile.read_text(encoding="utf-8")])
        arms, read_along = tuple(source.arms), config.replay.read_along
        return cls(config.sampling.temperature, where, profile, arms, fingerprint, read_along=read_along)

    def settings(self) -> list[str]:
        """Return what tells it from others."""
        others = (self.kinds, self.hidden, self.texts, self.read_along)
        return [self.fingerprint, *(arm.name for arm in self.arms), *map(str, others)]

    def with_profile(self, path: Path) -> "Data":
        """Return the same texts with other latencies."""
        fingerprint = digest([self.fingerprint, path.read_text(encoding="utf-8")])
        return replace(self, profile=path, fingerprint=fingerprint)

    def with_training_texts(self, traces: Traces) -> "Data":
        """Return the same with other texts to train on."""
        where = {**self.traces, "train": (traces.source, None)}
        return replace(self, traces=where, fingerprint=digest([self.fingerprint, _content(traces)]))

    def load(self, part: Split) -> Traces:
        """Read a part of the recording."""
        path, wanted = self.traces[part]
        return load_traces(path, wanted)

    def world(self, part: Split, extra: Sequence[Arm] = ()) -> ReplayWorld:
        """Return a part of the texts, ready to be replayed, with ``extra`` arms behind the others."""
        traces = self.load(part)
        arms = ArmTable([*self.arms, *(arm for arm in extra if arm not in self.arms)])
        world = ReplayWorld(traces, Profile.read(self.profile), arms, self.read_along)
        if self.kinds is None and not self.hidden and self.texts is None:
            return world
        world = copy.copy(world)
        world.texts = self._chosen(part, traces)
        if not len(world.texts):
            raise UserError(f"{traces.source}: there is no text of the kind {', '.join(self.kinds or ())}")
        world.features = with_hidden(world.features, self.hidden)
        return world

    def num_training_texts(self) -> int:
        """Return how many texts are learned from."""
        return len(self._chosen("train", self.load("train")))

    def _chosen(self, part: Split, traces: Traces) -> Ints:
        """Return the texts of a part that are looked at."""
        texts = traces.decidable[: self.texts if part == "train" else None]
        return texts if self.kinds is None else texts[np.isin([traces.kind(int(text)) for text in texts], self.kinds)]

    def kinds_of(self, part: Split) -> list[str]:
        """Return what sort of text each one of a part is that is looked at."""
        traces = self.load(part)
        return [traces.kind(int(text)) for text in self._chosen(part, traces)]

    def kinds_there(self) -> list[str]:
        """Return the kinds of text that every part has."""
        found = []
        for part in PARTS:
            traces = self.load(part)
            found.append({traces.kind(text) for text in range(traces.num_texts)})
        return sorted(set.intersection(*found))


def with_hidden(features: tuple[Feature, ...], hidden: Collection[str]) -> tuple[Feature, ...]:
    """Return the features with those of some names held constant."""
    return tuple(replace(feature, scale=_HIDING) if feature.name in hidden else feature for feature in features)


def _content(traces: Traces) -> str:
    columns: dict[str, NDArray[Any]] = {**traces.accepted, **traces.floats, **traces.second, **traces.lookup}
    found = hashlib.sha256(repr(traces.students).encode())
    for name, column in sorted(columns.items()):
        found.update(name.encode() + column.tobytes())
    for array in (traces.offsets, traces.prompt_lengths, traces.limits):
        found.update(array.tobytes())
    return found.hexdigest()
