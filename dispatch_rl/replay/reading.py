"""Files and folders of recordings as tables, and what is said of those that are damaged."""

import glob
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from dispatch_rl.errors import UserError
from dispatch_rl.progress import quiet_datasets
from dispatch_rl.replay.metadata import TraceMetadata
from dispatch_rl.replay.schema import shard_name

if TYPE_CHECKING:
    import pyarrow as pa

T = TypeVar("T")

_DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError)
"""What reading a damaged file may raise."""
_FILES = (".parquet", ".jsonl", ".json")


def read_shards(path: Path, metadata: TraceMetadata) -> "pa.Table":
    """Return the table of a recording in shards; raise :class:`UserError` if it is unfinished or damaged."""
    import pyarrow as pa

    if metadata.num_prompts is None or metadata.shard_size is None:
        names = sorted(folder.name for folder in path.glob("shard-*") if folder.is_dir())
    else:
        names = [shard_name(shard) for shard in range(-(-metadata.num_prompts // metadata.shard_size))]
    missing = [name for name in names if not (path / name).is_dir()]
    if missing or not names:
        raise UserError(f"{path}: {len(names) - len(missing)} of {len(names)} shards are there; run record again to finish it")
    tables = [_read_dataset(path / name) for name in names]
    rows = sum(table.num_rows for table in tables)
    if metadata.num_prompts not in (None, rows):
        raise UserError(f"{path}: the shards hold {rows} texts instead of {metadata.num_prompts}")
    return _guarded(path, lambda: pa.concat_tables(tables))


def read_foreign(path: Path) -> "pa.Table":
    """Return the table of a file, or of a folder that ``save_to_disk`` wrote; raise :class:`UserError` if it is missing or damaged."""
    import datasets
    import pyarrow.parquet as pq

    if path.is_dir():
        if not any((path / name).is_file() for name in ("state.json", "dataset_dict.json")):
            holds = ", ".join(sorted(entry.name for entry in path.iterdir())[:5]) or "nothing"
            raise UserError(f"{path}: neither dispatch_rl.record nor save_to_disk has finished this folder; it holds {holds}")
        return _read_dataset(path)
    if not path.is_file():
        raise UserError(f"traces: there is no recording {path}")
    if path.suffix not in _FILES:
        raise UserError(f"traces: {path} is neither a folder nor a {', '.join(_FILES)} file")
    if path.suffix == ".parquet":
        return _guarded(path, lambda: pq.ParquetFile(path).read())
    # `datasets` tells a file by its name and time, takes its name for a pattern, and finds out types from each chunk by itself.
    with path.open("rb") as file:
        cache = Path(datasets.config.HF_DATASETS_CACHE) / hashlib.file_digest(file, "sha256").hexdigest()[:16]
    whole = {"chunksize": path.stat().st_size + 1, "cache_dir": str(cache)}
    return _guarded(path, lambda: datasets.Dataset.from_json(glob.escape(str(path.resolve())), **whole).data.table)


def _read_dataset(folder: Path) -> "pa.Table":
    import datasets

    dataset = _guarded(folder, lambda: datasets.load_from_disk(str(folder)))
    if isinstance(dataset, datasets.DatasetDict):
        raise UserError(f"{folder}: it holds the parts {', '.join(dataset)}; name the folder of one of them")
    return dataset.data.table


def _guarded(path: Path, read: Callable[[], T]) -> T:
    import datasets
    import pyarrow as pa

    try:
        with quiet_datasets():
            return read()
    except (*_DAMAGE, pa.ArrowException, datasets.exceptions.DatasetGenerationError) as error:
        cause = error.__cause__ or error
        reason = (str(cause) or repr(cause)).splitlines()[0]
        if "corresponds to no data" in reason:
            raise UserError(f"{path}: the recording holds no texts") from error
        raise UserError(f"{path}: the recording is damaged or cut off: {reason}") from error
    except (StopIteration, IndexError) as error:
        raise UserError(f"{path}: the recording holds no texts") from error
