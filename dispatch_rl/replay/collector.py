"""Who records: a collector loads the models once and writes the shards that it is told to, here or as one of many in a pool."""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import torch

from dispatch_rl.decoding.families import Family, load_family
from dispatch_rl.decoding.fitness import check_numbers
from dispatch_rl.errors import UserError
from dispatch_rl.progress import quiet_datasets
from dispatch_rl.prompts import Prompt, prompts
from dispatch_rl.replay.metadata import TraceMetadata
from dispatch_rl.replay.recording import Recording, check_sampling, shard_table
from dispatch_rl.replay.schema import METADATA, shard_name
from dispatch_rl.runs import write_json

if TYPE_CHECKING:
    import pyarrow as pa


class Collector:
    """Writes shards. The bytes of a shard depend on its recording and its number, not on who writes it, when, or after which others.

    (On machines of one kind, with one number of threads: both change the last bits of sums.)
    """

    def __init__(self, recordings: Sequence[Recording], family: Family | None = None) -> None:
        """Nothing is loaded or written yet.

        Args:
            recordings: What is recorded, and where, all with the same models.
            family: The models; None loads those of the recordings' configuration with the first shard.
        """
        self.recordings = recordings
        self._given = family
        self._begun: dict[int, _PromptShards] = {}

    @cached_property
    def family(self) -> Family:
        """The models."""
        return load_family(self.recordings[0].config.family) if self._given is None else self._given

    def __call__(self, batch: Mapping[str, Sequence[int]]) -> None:
        """Write the shards ``batch["shard"]`` of the recordings ``batch["recording"]``; those that are there already stay as they are.

        Raises:
            UserError: A model or prompt cannot be read, or a folder holds another recording.
        """
        for index, number in zip(batch["recording"], batch["shard"], strict=True):
            self.begin(index)
            folder = self.recordings[index].folder / shard_name(number)
            if not folder.is_dir():
                _write_shard(folder, self._table(index, number))
            for unfinished in folder.parent.glob(f"{folder.name}.unfinished-*"):  # of processes that were killed
                shutil.rmtree(unfinished, ignore_errors=True)

    def _table(self, index: int, number: int) -> "pa.Table":
        recording, chosen = self.recordings[index], self._begun[index].read(number)
        with _threads(recording.settings.threads):
            return shard_table(self.family, recording, chosen, number * recording.settings.shard_size)

    def begin(self, index: int) -> None:
        """Write the description of a recording, or see that what is there belongs to it.

        Raises:
            UserError: A model or prompt cannot be read, a model computes no numbers, or the folder holds another recording.
        """
        if index not in self._begun:
            if not self._begun:
                check_numbers(self.family.by_key())
            shards = _PromptShards(self.family, self.recordings[index])  # where the prompts cannot be read, nothing is written
            _begin(self.recordings[index], self.family)
            self._begun[index] = shards


class _PromptShards:
    """The prompts of a recording, which are a stream, by shard: forwards by skipping, backwards by starting anew."""

    def __init__(self, family: Family, recording: Recording) -> None:
        self._family, self._recording = family, recording
        self._start()

    def _start(self) -> None:
        config = self._recording.config
        stream = prompts(config.prompts, self._family, self._recording.part, self._recording.seed)
        self._stream, self._drawn = chain([next(stream)], stream), 0

    def read(self, number: int) -> list[Prompt]:
        """Return the prompts of shard ``number``."""
        first, count = number * self._recording.settings.shard_size, self._recording.num_texts(number)
        if first < self._drawn:
            self._start()
        chosen = list(islice(self._stream, first - self._drawn, first - self._drawn + count))
        self._drawn = first + count
        return chosen


def record(
    family: Family,
    recording: Recording,
    shard: int = 0,
    num_shards: int = 1,
    progress: Callable[[int], None] = lambda texts: None,
) -> None:
    """Write the shards ``shard``, ``shard + num_shards``, ... that are not there yet.

    Args:
        family: The models.
        recording: What is recorded, and where.
        shard: Which share of the work this process does.
        num_shards: Among how many the work is split.
        progress: Told the number of texts that are done.

    Raises:
        UserError: Rejection sampling, a folder that holds another recording, or prompts that cannot be read.
    """
    check_sampling(recording.config.sampling)
    collector = Collector([recording], family)
    collector.begin(0)
    for number in range(recording.num_shards):
        if number % num_shards == shard:
            collector({"recording": [0], "shard": [number]})
        progress(number * recording.settings.shard_size + recording.num_texts(number))


def _begin(recording: Recording, family: Family) -> None:
    """Write the metadata, or see that what is there belongs to the same recording."""
    path, wanted = recording.folder / METADATA, recording.metadata(family)
    if path.exists():
        there = TraceMetadata.read(path)
        if there.fingerprint != wanted["fingerprint"]:
            raise UserError(f"output: {recording.folder} holds a recording of another family or with other settings; choose another folder")
        keys = ("num_prompts", "shard_size", "max_draft_length")
        if different := [key for key in keys if getattr(there, key) != wanted[key]]:
            key = different[0]
            raise UserError(
                f"output: {recording.folder} was begun with {key} {getattr(there, key)}, not {wanted[key]}; choose another folder"
            )
    elif recording.folder.exists() and any(not file.name.startswith(METADATA) for file in recording.folder.iterdir()):
        raise UserError(f"output: {recording.folder} is not empty and holds no recording; choose another folder")
    else:
        write_json(path, wanted)


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Use ``count`` CPU threads; None leaves them as they are."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _write_shard(folder: Path, table: "pa.Table") -> None:
    """Write a shard so that its folder appears only when it is whole."""
    import datasets

    # Process ids are not enough: those of other machines may be the same.
    unfinished = folder.with_name(f"{folder.name}.unfinished-{uuid4().hex}")
    try:
        with quiet_datasets():
            datasets.Dataset(table).save_to_disk(str(unfinished))
        unfinished.rename(folder)
    except OSError:
        # Another process that was given the same work may have been faster, and have cleared ours away.
        if not folder.is_dir():
            raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
