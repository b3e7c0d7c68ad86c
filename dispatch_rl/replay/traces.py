"""Reading recordings into flat arrays with offsets: position ``offsets[i] + t`` is token ``t`` of text ``i``."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dispatch_rl.decoding.arms import RESERVED_NAMES
from dispatch_rl.decoding.sampling import Sampling
from dispatch_rl.errors import UserError
from dispatch_rl.replay.columns import Bytes, Columns, Floats, Ints, Nested, runs
from dispatch_rl.replay.metadata import TraceMetadata
from dispatch_rl.replay.profile import TARGET
from dispatch_rl.replay.reading import read_foreign, read_shards
from dispatch_rl.replay.schema import ACCEPTED, BEYOND, LONGEST_DRAFT, LOOKUP_COLUMNS, MATCH, METADATA, POSITION_FLOATS, SECOND

if TYPE_CHECKING:
    import pyarrow as pa

_PARTS = ("train", "validation", "test")
_FEWEST_PROMPTS = 10
"""Fewer could not be parted."""


@dataclass(frozen=True)
class Traces:
    """What was recorded along the paths of some texts, the columns of :mod:`dispatch_rl.replay.schema` one behind the other."""

    source: Path
    """Where it was read from."""
    students: tuple[str, ...]
    """Students, from cheap to expensive."""
    family: str | None
    """Fingerprint of the family; None if the recording has none."""
    first_position: int
    """Tokens that are there before the first round."""
    max_draft_length: int
    """Longest draft that the recording knows about."""
    context_limits: dict[str, int]
    """Longest text that a student can read (tokens), where it is limited."""
    offsets: Ints
    """Where each text begins and the last one ends ``[texts + 1]``."""
    prompt_lengths: Ints
    """Tokens of each prompt ``[texts]``; zero if unknown."""
    limits: Ints
    """Longest text, prompt included ``[texts]``; out of reach if unknown."""
    accepted: dict[str, Bytes]
    """How much of a long draft of a student that begins at a position is accepted (tokens) ``[positions]``."""
    floats: dict[str, Floats]
    """``entropy``, ``margin``, ``entropy_small`` and so on, as far as recorded ``[positions]``."""
    second: dict[str, NDArray[np.bool_]]
    """Whether the second choice of a student is the token, as far as recorded ``[positions]``."""
    beyond: dict[str, Nested]
    """``beyond_margin_small`` and so on, as far as recorded."""
    lookup: dict[str, Bytes]
    """The columns of prompt lookup, or nothing ``[positions]``."""
    path: NDArray[np.int32] | None
    """Token ids of the paths, if recorded ``[positions]``."""
    table: "pa.Table"
    """The rows as they are on disk."""

    @property
    def num_texts(self) -> int:
        """Number of texts."""
        return len(self.offsets) - 1

    @property
    def num_positions(self) -> int:
        """Number of recorded tokens."""
        return int(self.offsets[-1])

    @property
    def lengths(self) -> Ints:
        """Tokens of each path ``[texts]``."""
        return np.diff(self.offsets)

    @property
    def decidable(self) -> Ints:
        """Texts in which there is something to decide."""
        return np.flatnonzero(self.lengths > self.first_position)

    def prompt(self, text: int) -> tuple[int, ...]:
        """Return the tokens of a prompt."""
        return tuple(self.table.column("prompt")[text].as_py())

    def path_tokens(self, text: int) -> tuple[int, ...] | None:
        """Return the path of a text, if recorded."""
        return None if self.path is None else tuple(self.path[self.offsets[text] : self.offsets[text + 1]].tolist())

    def kind(self, text: int) -> str:
        """Return what sort of text it is."""
        return str(self.table.column("kind")[text].as_py()) if "kind" in self.table.column_names else "text"

    def sampling(self, text: int) -> Sampling:
        """Return how a text was decoded."""
        keys = ("temperature", "top_k", "top_p", "seed")
        return Sampling(**{key: self.table.column(key)[text].as_py() for key in keys})

    def missing(self) -> frozenset[str]:
        """Return the columns that features may need and the recording lacks."""
        known = {*self.floats, *self.lookup}
        return frozenset(column for column in (*POSITION_FLOATS, *LOOKUP_COLUMNS) if column not in known)


def load_traces(path: Path, part: str | None = None) -> Traces:
    """Read a recording.

    Args:
        path: A folder or file as :mod:`dispatch_rl.replay.schema` describes them.
        part: ``train``, ``validation`` or ``test``: the sub-folder of that name if there is one, else eight, one and one in ten of the
            prompts, drawn by lot, always alike. Rows of one ``prompt_id``, or one ``prompt``, stay together, if there are ten of them.
            None reads everything.

    Raises:
        UserError: It is missing, unfinished, truncated, empty, or its columns do not fit together.
    """
    if part is not None and (path / part).is_dir():
        return load_traces(path / part)
    if parts := [name for name in _PARTS if (path / name / METADATA).is_file()]:
        raise UserError(f"{path}: there is no part '{part or ''}' in this recording, only {', '.join(parts)}")
    if (path / METADATA).is_file():
        metadata = TraceMetadata.read(path / METADATA)
        table = read_shards(path, metadata)
    else:
        table = read_foreign(path)
        metadata = TraceMetadata(_students_by_column(path, table.column_names))
    metadata = replace(metadata, max_draft_length=metadata.max_draft_length or _longest_draft(path, table, metadata.students))
    if part is not None:
        table = table.take(_rows_of(part, table))
    if table.num_rows == 0:
        raise UserError(f"{path}: the recording holds no {part + ' ' if part else ''}texts")
    return _flatten(path, table, metadata)


def _rows_of(part: str, table: "pa.Table") -> Ints:
    """Return the rows of one part; by lot, since rows often alternate between several sources."""
    prompts = np.arange(table.num_rows)
    for column in ("prompt_id", "prompt"):
        if column in table.column_names:
            number: dict[str, int] = {}
            found = [number.setdefault(repr(name), len(number)) for name in table.column(column).to_pylist()]
            if len(number) >= _FEWEST_PROMPTS:
                prompts = np.array(found)
                break
    tenth = np.random.default_rng(0).permutation(prompts.max(initial=-1) + 1)[prompts] % 10
    return np.flatnonzero({"train": tenth < 8, "validation": tenth == 8, "test": tenth == 9}[part])


def _students_by_column(path: Path, columns: Sequence[str]) -> tuple[str, ...]:
    names = [column.removeprefix(prefix) for column in columns for prefix in (MATCH, ACCEPTED) if column.startswith(prefix)]
    if not names:
        raise UserError(f"{path}: no column is called {MATCH}STUDENT or {ACCEPTED}STUDENT; there are {', '.join(columns)}")
    if reserved := sorted({*names} & {*RESERVED_NAMES}):
        raise UserError(f"{path}: a student cannot be called '{reserved[0]}', which is an arm of its own; rename its columns")
    if reserved := sorted({*names} & {TARGET, ""}):
        raise UserError(f"{path}: a student cannot be called '{reserved[0]}'; rename its columns")
    return tuple(dict.fromkeys(names))


def _longest_draft(path: Path, table: "pa.Table", students: Sequence[str]) -> int:
    """Return how long drafts are known; where numbers of accepted tokens were recorded, the largest of them says it."""
    columns = Columns(path, table)
    counts = [columns.flat(ACCEPTED + name, np.uint8) for name in students if MATCH + name not in columns]
    return max(1, *(int(count.max(initial=0)) for count in counts)) if counts else LONGEST_DRAFT


def _flatten(path: Path, table: "pa.Table", metadata: TraceMetadata) -> Traces:
    columns = Columns(path, table)
    matches = {name: columns.flat(MATCH + name, np.bool_) for name in metadata.students if MATCH + name in columns}
    counts = {name: columns.flat(ACCEPTED + name, np.uint8) for name in metadata.students if name not in matches}
    assert columns.offsets is not None
    offsets = columns.offsets
    accepted = {name: runs(matches[name], offsets) if name in matches else counts[name] for name in metadata.students}
    names = [*POSITION_FLOATS, *(f"{key}_{name}" for name in metadata.students for key in POSITION_FLOATS)]
    beyond = [f"{BEYOND}{key}_{name}" for name in metadata.students for key in ("margin", "entropy")]
    prompt_lengths = columns.lengths("prompt")
    lookup = all(name in columns for name in LOOKUP_COLUMNS)
    return Traces(
        source=path,
        students=metadata.students,
        family=metadata.family,
        first_position=metadata.first_position,
        max_draft_length=metadata.max_draft_length or LONGEST_DRAFT,
        context_limits=metadata.context_limits or {},
        offsets=offsets,
        prompt_lengths=prompt_lengths,
        limits=_limits(columns, prompt_lengths, np.diff(offsets)),
        accepted=accepted,
        floats={name: columns.flat(name, np.float32) for name in names if name in columns},
        second={name: columns.flat(SECOND + name, np.bool_) for name in metadata.students if SECOND + name in columns},
        beyond={name: columns.nested(name) for name in beyond if name in columns},
        lookup={name: columns.flat(name, np.uint8) for name in LOOKUP_COLUMNS} if lookup else {},
        path=columns.flat("path", np.int32) if "path" in columns else None,
        table=table,
    )


def _limits(columns: Columns, prompt_lengths: Ints, lengths: Ints) -> Ints:
    """Return how long each text may get, prompt included; unless it is told, far from every end, and equally far for all texts.

    A policy sees how far a text is from its limit, which must not tell how long it will be. Rounded up to a power of two, that is mostly
    the same for the parts of one recording too.
    """
    longest = 1 << int(lengths.max() - 1).bit_length()
    limits = columns.integers("limit", prompt_lengths + longest + LONGEST_DRAFT + 1)
    if len(short := np.flatnonzero(limits < prompt_lengths + lengths)):
        text, least = short[0], (prompt_lengths + lengths)[short[0]]
        raise UserError(f"{columns.path}: the column 'limit' holds {limits[text]} for a text of {least} tokens, prompt included")
    return limits
