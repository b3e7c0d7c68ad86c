"""Reads what wandb wrote offline: a log in LevelDB's format, of protocol buffers."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import wandb
from wandb.proto import wandb_internal_pb2

Record: Any = wandb_internal_pb2.Record  # type: ignore[attr-defined]  # its module makes its names at run time

_BLOCK, _HEADER, _PREAMBLE = 32_768, 7, 7
_FULL, _FIRST, _LAST = 1, 2, 4


def records(run_folder: Path) -> Iterator[Any]:
    """Yield the records of an offline run, first to last."""
    wandb.teardown()  # its service may still be writing after a run has finished; it has written all when it has gone
    (file,) = run_folder.glob("run-*.wandb")
    data = file.read_bytes()
    assert data.startswith(b":W&B")
    position, parts = _PREAMBLE, b""
    while position + _HEADER <= len(data):
        if _BLOCK - position % _BLOCK < _HEADER:
            position += _BLOCK - position % _BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + _HEADER])
        position += _HEADER
        parts = b"" if kind in (_FULL, _FIRST) else parts
        parts += data[position : position + length]
        position += length
        if kind in (_FULL, _LAST):
            yield Record.FromString(parts)


def run_id(run_folder: Path) -> str:
    """Return which run an offline run's folder is a part of (its name can end with a number when two begin in one second)."""
    (identity,) = {str(record.run.run_id) for record in records(run_folder) if record.HasField("run")}
    return identity


def config(run_folder: Path) -> dict[str, Any]:
    """Return the configuration of an offline run without wandb's own entry."""
    updates = [record.run.config.update for record in records(run_folder) if record.HasField("run")]
    return {item.key: json.loads(item.value_json) for update in updates for item in update if item.key != "_wandb"}


def history(run_folder: Path) -> list[dict[str, Any]]:
    """Return the rows of an offline run's history."""
    rows = [record.history.item for record in records(run_folder) if record.HasField("history")]
    return [{"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in row} for row in rows]


def summary(run_folder: Path) -> dict[str, Any]:
    """Return what an offline run comes to."""
    updates = [record.summary.update for record in records(run_folder) if record.HasField("summary")]
    return {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for update in updates for item in update}


def artifacts(run_folder: Path) -> dict[str, Any]:
    """Return the artifacts of an offline run, by name."""
    logged = [record.request.log_artifact.artifact for record in records(run_folder) if record.request.HasField("log_artifact")]
    return {artifact.name: artifact for artifact in [*logged, *(r.artifact for r in records(run_folder) if r.HasField("artifact"))]}
