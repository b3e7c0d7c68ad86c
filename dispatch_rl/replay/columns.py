"""Columns of lists as flat arrays with offsets."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dispatch_rl.errors import UserError
from dispatch_rl.replay.schema import LONGEST_DRAFT, POSITION_FLOATS

if TYPE_CHECKING:
    import pyarrow as pa

Ints = NDArray[np.int64]
Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


class Nested(NamedTuple):
    """A list of numbers at every position, one behind the other."""

    offsets: Ints
    """Where each list begins and the last one ends ``[positions + 1]``."""
    values: Floats
    """All numbers."""


class Columns:
    """Takes columns out of a table as flat arrays; all lists over positions must have the same lengths."""

    def __init__(self, path: Path, table: "pa.Table") -> None:
        self.path = path
        self.table = table
        self.offsets: Ints | None = None

    def __contains__(self, name: str) -> bool:
        return name in self.table.column_names

    def flat(self, name: str, dtype: type) -> NDArray[Any]:
        """Return the values of a list column ``[positions]``."""
        if name not in self:
            raise UserError(f"{self.path}: the column '{name}' is missing; there are {', '.join(self.table.column_names)}")
        column = self.table.column(name)
        self._check_type(name, column.type, dtype)
        if column.null_count:
            raise UserError(f"{self.path}: the column '{name}' has gaps")
        lengths = self._list_lengths(column.chunks)
        offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        if self.offsets is None:
            self.offsets = offsets
        elif not np.array_equal(offsets, self.offsets):
            raise UserError(f"{self.path}: the lists of '{name}' are not as long as those of the columns before it")
        parts = [chunk.flatten() for chunk in column.chunks]
        if any(part.null_count for part in parts):
            raise UserError(f"{self.path}: the column '{name}' has gaps")
        values = np.concatenate([np.asarray(part.to_numpy(zero_copy_only=False)) for part in parts] or [np.zeros(0)])
        if np.isnan(values.astype(np.float64) if values.dtype.kind == "f" else 0.0).any():
            raise UserError(f"{self.path}: the column '{name}' holds NaN")
        # Noise of top-k can make a student's choice infinitely clear, but nothing else is infinite.
        if name in POSITION_FLOATS and values.dtype.kind == "f" and np.isinf(values).any():
            raise UserError(f"{self.path}: the column '{name}' holds infinity")
        if dtype is np.uint8 and len(values) and values.min() < 0:
            raise UserError(f"{self.path}: the column '{name}' holds {values.min()}")
        if dtype is np.bool_ and len(values) and (strange := values[(values != 0) & (values != 1)]).size:
            raise UserError(f"{self.path}: the column '{name}' holds {strange[0]}, which is neither 1 (true) nor 0 (false)")
        # As an unsigned byte, which no type of whole numbers is too small to be compared with.
        return (np.minimum(values, np.uint8(LONGEST_DRAFT)) if dtype is np.uint8 else values).astype(dtype)

    def nested(self, name: str) -> Nested:
        """Return the values of a column whose lists hold a list of numbers at every position."""
        from pyarrow import types

        column = self.table.column(name)
        inner: Any = getattr(column.type, "value_type", None)
        # Where every inner list is empty, they are lists of null.
        numbers = (types.is_floating, types.is_integer, types.is_null)
        if not (_is_list(column.type) and _is_list(inner) and any(fits(inner.value_type) for fits in numbers)):
            raise UserError(f"{self.path}: the column '{name}' holds {column.type}, not lists of lists of numbers")
        lists = [chunk.flatten() for chunk in column.chunks]
        if column.null_count or any(part.null_count + part.flatten().null_count for part in lists):
            raise UserError(f"{self.path}: the column '{name}' has gaps")
        if self.offsets is not None and not np.array_equal(np.diff(self.offsets), self._list_lengths(column.chunks)):
            raise UserError(f"{self.path}: the lists of '{name}' are not as long as those of the columns before it")
        lengths = self._list_lengths(lists)
        values = np.concatenate([part.flatten().to_numpy(zero_copy_only=False) for part in lists] or [np.zeros(0)]).astype(np.float32)
        if np.isnan(values).any():
            raise UserError(f"{self.path}: the column '{name}' holds NaN")
        return Nested(np.concatenate([[0], np.cumsum(lengths)]), values)

    def integers(self, name: str, default: Ints) -> Ints:
        """Return a scalar column ``[texts]``, or the default if it is missing."""
        import pyarrow as pa

        if name not in self:
            return default
        column = self.table.column(name)
        if column.null_count:
            raise UserError(f"{self.path}: the column '{name}' has gaps")
        if not pa.types.is_integer(column.type):
            raise UserError(f"{self.path}: the column '{name}' holds {column.type}, not whole numbers")
        return np.asarray(column.to_numpy()).astype(np.int64)

    def lengths(self, name: str) -> Ints:
        """Return the lengths of the lists of a column ``[texts]``, whatever they hold; zeros if it is missing."""
        if name not in self:
            return np.zeros(self.table.num_rows, dtype=np.int64)
        column = self.table.column(name)
        self._check_type(name, column.type, np.int32)
        if column.null_count:
            raise UserError(f"{self.path}: the column '{name}' has gaps")
        return self._list_lengths(column.chunks)

    def _check_type(self, name: str, found: "pa.DataType", dtype: type) -> None:
        """Refuse what is no list, or a list of something that does not become ``dtype`` without loss."""
        from pyarrow import types

        if not _is_list(found):
            raise UserError(f"{self.path}: the column '{name}' holds {found}, not lists")
        kinds = {np.bool_: (types.is_boolean, types.is_integer), np.float32: (types.is_floating, types.is_integer)}
        if not any(fits(found.value_type) for fits in (*kinds.get(dtype, (types.is_integer,)), types.is_null)):
            wanted = {np.bool_: "true and false", np.float32: "numbers"}.get(dtype, "whole numbers")
            raise UserError(f"{self.path}: the column '{name}' holds lists of {found.value_type}, not of {wanted}")

    @staticmethod
    def _list_lengths(chunks: "Sequence[pa.Array]") -> Ints:
        import pyarrow.compute as pc

        parts = [np.asarray(pc.list_value_length(chunk).fill_null(0), dtype=np.int64) for chunk in chunks]
        return np.concatenate(parts or [np.zeros(0, dtype=np.int64)])


def _is_list(found: "pa.DataType | None") -> bool:
    from pyarrow import types

    return found is not None and (types.is_list(found) or types.is_large_list(found) or types.is_fixed_size_list(found))


def runs(match: NDArray[np.bool_], offsets: Ints) -> Bytes:
    """Return how many consecutive matches begin at each position and end with its text ``[positions]``, at most 255."""
    positions = np.arange(len(match))
    text_ends = np.repeat(offsets[1:], np.diff(offsets))
    stops = np.where(match, len(match), positions)
    next_stop = np.minimum.accumulate(stops[::-1])[::-1]
    return np.minimum(np.minimum(next_stop, text_ends) - positions, LONGEST_DRAFT).astype(np.uint8)
