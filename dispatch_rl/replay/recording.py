"""Recording traces: the target's path of every prompt, then one pass of every student over it. Who writes which shard: ``collector.py``."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dispatch_rl.config import DecodingConfig, RecordingConfig
from dispatch_rl.decoding.families import Family
from dispatch_rl.decoding.lookup import LookupIndex
from dispatch_rl.decoding.sampling import Sampling
from dispatch_rl.errors import UserError
from dispatch_rl.prompts import Prompt, Split
from dispatch_rl.replay.fingerprint import digest, family_fingerprint, recording_settings
from dispatch_rl.replay.paths import Batch, Paths, StudentReading, read_paths, write_paths
from dispatch_rl.replay.schema import LOOKUP_COLUMNS, VERSION, features, shard_name

if TYPE_CHECKING:
    import pyarrow as pa

FIRST_POSITION = 1
"""Reading the prompt emits the first token."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Recording:
    """A recording that is to be made, or that is made already: one part of the prompts in one folder."""

    folder: Path
    config: DecodingConfig
    settings: RecordingConfig
    part: Split
    seed: int
    num_prompts: int

    def metadata(self, family: Family) -> dict[str, Any]:
        """Return what ``traces.json`` is to hold."""
        made_with = {"family": family_fingerprint(family), **recording_settings(self.config, self.part, self.seed)}
        return {
            "schema": VERSION,
            "students": list(family.students),
            "first_position": FIRST_POSITION,
            "max_draft_length": self.settings.max_draft_length,
            "num_prompts": self.num_prompts,
            "shard_size": self.settings.shard_size,
            "context_limits": {name: student.context_limit for name, student in family.students.items()},
            "fingerprint": digest(made_with),
            "family": made_with["family"],
            "made_with": made_with,
        }

    @property
    def num_shards(self) -> int:
        """Number of shards."""
        return -(-self.num_prompts // self.settings.shard_size)

    @property
    def finished(self) -> bool:
        """Whether all shards are there."""
        return not self.missing()

    def missing(self, shard: int = 0, num_shards: int = 1) -> list[int]:
        """Return which of the shards ``shard``, ``shard + num_shards``, ... are not there yet."""
        return [number for number in range(shard, self.num_shards, num_shards) if not (self.folder / shard_name(number)).is_dir()]

    def num_texts(self, number: int) -> int:
        """Return how many texts shard ``number`` holds."""
        return min(self.settings.shard_size, self.num_prompts - number * self.settings.shard_size)


def check_sampling(sampling: Sampling) -> None:
    """Refuse sampling whose text depends on the drafts.

    Raises:
        UserError: It is rejection sampling.
    """
    if not sampling.greedy and sampling.method == "rejection":
        raise UserError(
            "sampling.method: with rejection sampling the text depends on the drafts, so there is no exact replay; "
            "use coupled, or train with --env live"
        )


def shard_table(family: Family, recording: Recording, chosen: Sequence[Prompt], first: int) -> "pa.Table":
    """Record some prompts and return their rows, the first of them being prompt number ``first``.

    Prompts of similar length share a batch. Sums of floats depend on what else is in a batch, so only prompts of one shard ever share one.
    """
    import pyarrow as pa

    size = recording.settings.batch_size
    order = sorted(range(len(chosen)), key=lambda i: len(chosen[i].tokens))
    rows: dict[int, Row] = {}
    for start in range(0, len(order), size):
        members = order[start : start + size]
        for i, row in zip(members, _rows(family, recording, [chosen[i] for i in members]), strict=True):
            rows[i] = {"prompt_id": f"{recording.part}-{first + i}", **row}
    types = features(tuple(family.students), recording.config.watches)
    return pa.Table.from_pylist([rows[i] for i in range(len(chosen))], schema=types.arrow_schema)


def _rows(family: Family, recording: Recording, chosen: Sequence[Prompt]) -> list[Row]:
    config = recording.config
    samplings = [prompt.sampling(config.sampling) for prompt in chosen]
    limits = [min(family.context_limit, len(prompt.tokens) + config.prompts.max_new_tokens) for prompt in chosen]
    batch = Batch(
        prompts=[prompt.tokens for prompt in chosen],
        seeds=torch.tensor([_signed(sampling.seed) for sampling in samplings]),
        limits=torch.tensor(limits),
        sampling=config.sampling,
    )
    paths = write_paths(family, batch)
    beyond = recording.settings.max_draft_length if config.watches else None
    readings = read_paths(family, batch, paths, beyond)
    columns = {**_path_columns(paths), **_student_columns(readings)}
    lengths = paths.lengths.tolist()
    rows = []
    for i, (prompt, sampling) in enumerate(zip(chosen, samplings, strict=True)):
        scalars = {key: value for key, value in asdict(sampling).items() if key != "method"}
        row = {"kind": prompt.kind, "prompt": list(prompt.tokens), "limit": limits[i], **scalars}
        row |= {name: values[i, : lengths[i]] for name, values in columns.items()}
        row |= lookup_columns(prompt.tokens, row["path"].tolist(), recording.settings.max_draft_length)
        rows.append(row)
    for name, reading in readings.items():
        _add_beyond(rows, name, reading)
    return rows


def _signed(seed: int) -> int:
    """Return the int64 that has the 64 bits of ``seed``."""
    return seed - (seed >> 63 << 64)


def _path_columns(paths: Paths) -> Row:
    return {
        "path": paths.tokens.cpu().numpy(),
        "entropy": paths.entropy_nats.cpu().numpy(),
        "top1_probability": paths.top1_probability.cpu().numpy(),
        "margin": paths.margin.cpu().numpy(),
    }


def _student_columns(readings: dict[str, StudentReading]) -> Row:
    columns = {}
    for name, reading in readings.items():
        columns[f"match_{name}"] = reading.match.cpu().numpy()
        columns[f"entropy_{name}"] = reading.entropy_nats.cpu().numpy()
        columns[f"top1_probability_{name}"] = reading.top1_probability.cpu().numpy()
        if reading.margin is not None:
            columns[f"margin_{name}"] = reading.margin.cpu().numpy()
        if reading.second is not None:
            columns[f"second_{name}"] = reading.second.cpu().numpy()
    return columns


def _add_beyond(rows: Sequence[Row], name: str, reading: StudentReading) -> None:
    """Add what a student would draft behind its wrong tokens to the rows, with an empty list at all other positions."""
    if reading.wrong is None or reading.beyond is None:
        return
    for key, values in ((f"beyond_margin_{name}", reading.beyond.margin), (f"beyond_entropy_{name}", reading.beyond.entropy_nats)):
        for row in rows:
            row[key] = [[] for _ in row["path"]]
        for (text, column), drafted in zip(reading.wrong.tolist(), values.cpu().numpy(), strict=True):
            rows[text][key][column] = drafted[~np.isnan(drafted)]


def lookup_columns(prompt: Sequence[int], path: Sequence[int], max_draft_length: int) -> dict[str, list[int]]:
    """Return what prompt lookup would do at every position of ``path``: length of the match, tokens drafted, tokens accepted."""
    index = LookupIndex()
    index.extend([*prompt, *path[:FIRST_POSITION]])
    found = [(0, 0, 0)] * min(FIRST_POSITION, len(path))
    for position in range(FIRST_POSITION, len(path)):
        match, proposed = index.find([])
        draft: list[int] = []
        while proposed is not None and len(draft) < max_draft_length:
            draft.append(proposed)
            _, proposed = index.find(draft)
        agreeing = (drafted == token for drafted, token in zip(draft, path[position:], strict=False))
        accepted = next((i for i, agrees in enumerate(agreeing) if not agrees), min(len(draft), len(path) - position))
        found.append((match, len(draft), accepted))
        index.extend([path[position]])
    return {name: [values[i] for values in found] for i, name in enumerate(LOOKUP_COLUMNS)}
